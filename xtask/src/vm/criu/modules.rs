//! The kernel modules of a guest: those that CRIU needs, and those that fixtures need.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use object::{Object as _, ObjectSection as _};

use crate::vm::initramfs::read;

/// Modules that CRIU needs: to list sockets, and to block connections while it dumps them.
const OF_CRIU: &[&str] = &[
    "unix_diag",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "af_packet_diag",
    "netlink_diag",
    "nf_tables",
    "nf_conntrack",
    "nft_ct",
    "nf_conntrack_netlink",
    "veth",
];

/// Modules that a guest's disk needs.
const OF_DISKS: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];

/// Modules that fixtures need. A kernel may lack some of them, or have them built in: a fixture
/// says what is missing.
const OF_FIXTURES: &[&str] = &[
    "af_alg",
    "af_key",
    "algif_hash",
    "appletalk",
    "autofs4",
    "ax25",
    "bluetooth",
    "can",
    "can_raw",
    "cpuid",
    "dccp",
    "dccp_ipv4",
    "dm_mod",
    "evdev",
    "fuse",
    "hpet",
    "ieee802154_socket",
    "kcm",
    "kvm",
    "l2tp_ip",
    "llc2",
    "loop",
    "mctp",
    "mousedev",
    "msr",
    "nbd",
    "netlink_diag",
    "overlay",
    "phonet",
    "ppp_generic",
    "pppox",
    "pppoe",
    "qrtr",
    "rds",
    "rtc_cmos",
    "sctp",
    "smc",
    "snd_timer",
    "tipc",
    "tls",
    "tun",
    "udmabuf",
    "uhid",
    "uinput",
    "vfio",
    "vhost_net",
    "vhost_vsock",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "vsock",
    "vsock_loopback",
    "x25",
    "xfrm_user",
];

/// Returns those of the wanted modules that a kernel has, and the modules that they depend on, in
/// the order in which they can be loaded.
pub(super) fn get(dir: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files = BTreeMap::new();
    find(dir, &mut files)?;
    if files.is_empty() {
        bail!("no module in {}", dir.display());
    }
    let mut order = Order { files, found: Vec::new() };
    for name in OF_CRIU.iter().chain(OF_DISKS).chain(OF_FIXTURES) {
        order.add(name)?;
    }
    Ok(order.found)
}

/// Finds all modules below a directory, by the kernel's names for them.
fn find(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            find(&path, files)?;
        } else if let Some((name, "" | ".xz" | ".zst")) =
            entry.file_name().to_str().and_then(|n| n.split_once(".ko"))
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

struct Order {
    files: BTreeMap<String, PathBuf>,
    found: Vec<(String, Vec<u8>)>,
}

impl Order {
    /// Adds a module, after those that it depends on.
    fn add(&mut self, name: &str) -> anyhow::Result<()> {
        // It may be built in, or not exist at all.
        let Some(file) = self.files.remove(name) else { return Ok(()) };
        let data = plain(&file)?;
        for needed in needs(&data).with_context(|| format!("read {}", file.display()))? {
            self.add(&needed)?;
        }
        self.found.push((name.to_owned(), data));
        Ok(())
    }
}

/// Reads a module, and decompresses it if needed.
fn plain(file: &Path) -> anyhow::Result<Vec<u8>> {
    let program = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return read(file),
    };
    let output = Command::new(program).arg("-dc").arg(file).output();
    let output =
        output.with_context(|| format!("start {program}, which Debian's package of that name has"))?;
    if !output.status.success() {
        bail!("{program} can't decompress {}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

/// Returns the modules that a module depends on, as it says itself.
fn needs(module: &[u8]) -> anyhow::Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").context("it has no .modinfo")?;
    let info = String::from_utf8_lossy(section.data()?);
    let needed = info.split('\0').find_map(|entry| entry.strip_prefix("depends=")).unwrap_or_default();
    Ok(needed.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}
