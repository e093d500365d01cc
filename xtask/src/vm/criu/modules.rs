//! Modules of a guest's kernel: what CRIU needs of them, and what fixtures do.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use object::{Object as _, ObjectSection as _};

use crate::vm::initramfs::read;

/// What CRIU needs: to ask for sockets, and to hold connections back while it dumps them.
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

/// What a guest's disk needs.
const OF_DISKS: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];

/// What fixtures are made of. Which of these a kernel has, or has in itself, is its own affair: a
/// fixture says what it misses.
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

/// The wanted modules that a kernel has, and those that they need, in the order in which they can
/// be loaded.
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

/// All modules below a directory, by the names that the kernel has for them.
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
    /// Adds a module, after those that it needs.
    fn add(&mut self, name: &str) -> anyhow::Result<()> {
        // It may be part of the kernel, or not be there at all.
        let Some(file) = self.files.remove(name) else { return Ok(()) };
        let data = plain(&file)?;
        for needed in needs(&data).with_context(|| format!("read {}", file.display()))? {
            self.add(&needed)?;
        }
        self.found.push((name.to_owned(), data));
        Ok(())
    }
}

/// A module, which may be compressed.
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

/// The modules that a module needs, as it says itself.
fn needs(module: &[u8]) -> anyhow::Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").context("it has no .modinfo")?;
    let info = String::from_utf8_lossy(section.data()?);
    let needed = info.split('\0').find_map(|entry| entry.strip_prefix("depends=")).unwrap_or_default();
    Ok(needed.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}
