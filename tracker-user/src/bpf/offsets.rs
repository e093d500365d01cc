//! Where the members that the probes read are in this kernel.

use aya::EbpfLoader;

use super::{
    btf::{Btf, BtfError},
    hidden::{HiddenPlace, UnscannablePlace, can_scan},
};
use crate::{host::KernelVersion, runtime::Hierarchy};

/// An offset that the programs need: name of the global, struct, member, and the bytes that are
/// read there (`None`: an address is computed, nothing is read).
type Offset = (&'static str, &'static str, &'static str, Option<u32>);

/// One for each global in tracker-ebpf/src/kernel/layout.rs that isn't set by [`Globals::find`]
/// itself.
#[rustfmt::skip]
const OFFSETS: &[Offset] = &[
    ("OFF_TASK_FLAGS",    "task_struct",  "flags",          Some(4)),
    ("OFF_TASK_FILES",    "task_struct",  "files",          Some(8)),
    ("OFF_TASK_TGID",     "task_struct",  "tgid",           Some(4)),
    ("OFF_TASK_LEADER",   "task_struct",  "group_leader",   Some(8)),
    ("OFF_TASK_SIGNAL",   "task_struct",  "signal",         Some(8)),
    ("OFF_TASK_CGROUPS",  "task_struct",  "cgroups",        Some(8)),
    ("OFF_TASK_STACK",    "task_struct",  "stack",          Some(8)),
    ("OFF_SIGNAL_LIVE",   "signal_struct","live.counter",   Some(4)),
    ("OFF_SIGNAL_THREADS","signal_struct","nr_threads",     Some(4)),
    ("OFF_CSS_CGROUP",    "cgroup_subsys_state", "cgroup",  Some(8)),
    ("OFF_CGROUP_KN",     "cgroup",       "kn",             Some(8)),
    ("OFF_KN_ID",         "kernfs_node",  "id",             Some(8)),
    ("OFF_FILES_COUNT",   "files_struct", "count.counter",  Some(4)),
    ("OFF_FILES_FDT",     "files_struct", "fdt",            Some(8)),
    ("OFF_FDT_MAX_FDS",   "fdtable",      "max_fds",        Some(4)),
    ("OFF_FDT_FD",        "fdtable",      "fd",             Some(8)),
    ("OFF_FDT_OPEN_FDS",  "fdtable",      "open_fds",       Some(8)),
    ("OFF_FILE_INODE",    "file",         "f_inode",        Some(8)),
    ("OFF_FILE_OP",       "file",         "f_op",           Some(8)),
    ("OFF_FILE_DENTRY",   "file",         "f_path.dentry",  Some(8)),
    ("OFF_FILE_PRIVATE",  "file",         "private_data",   Some(8)),
    ("OFF_DENTRY_NAME",   "dentry",       "d_name.name",    Some(8)),
    ("OFF_INODE_MODE",    "inode",        "i_mode",         Some(2)),
    ("OFF_INODE_SB",      "inode",        "i_sb",           Some(8)),
    ("OFF_INODE_RDEV",    "inode",        "i_rdev",         Some(4)),
    ("OFF_SB_MAGIC",      "super_block",  "s_magic",        Some(8)),
    ("OFF_SOCKET_TYPE",   "socket",       "type",           Some(2)),
    ("OFF_SOCKET_SK",     "socket",       "sk",             Some(8)),
    ("OFF_SK_FAMILY",     "sock",         "__sk_common.skc_family", Some(2)),
    ("OFF_SK_PROTOCOL",   "sock",         "sk_protocol",    Some(2)),
    ("OFF_REGS_ARG0",     "pt_regs",      arch::ARGS[0],    Some(8)),
    ("OFF_REGS_ARG1",     "pt_regs",      arch::ARGS[1],    Some(8)),
    ("OFF_REGS_ARG2",     "pt_regs",      arch::ARGS[2],    Some(8)),
    ("OFF_REGS_ARG3",     "pt_regs",      arch::ARGS[3],    Some(8)),
    ("OFF_REGS_SYSCALL",  "pt_regs",      arch::SYSCALL,    Some(8)),
];

/// For each place of the hidden scan what its program needs. Some kernels lack some of it: then its
/// globals stay 0, and the place isn't scanned.
#[rustfmt::skip]
const MAPPED: &[Offset] = &[
    ("OFF_VMA_FILE",      "vm_area_struct", "vm_file",      Some(8)),
    ("OFF_VMA_MM",        "vm_area_struct", "vm_mm",        Some(8)),
];
#[rustfmt::skip]
const REGISTERED: &[Offset] = &[
    ("OFF_TASK_IO_URING", "task_struct",  "io_uring",       Some(8)),
    ("OFF_URING_RINGS",   "io_uring_task", "registered_rings", Some(16 * 8)),
];
#[rustfmt::skip]
const IN_FLIGHT: &[Offset] = &[
    ("OFF_SK_STATE",      "sock",         "__sk_common.skc_state", Some(1)),
    ("OFF_SK_QUEUE",      "sock",         "sk_receive_queue", None),
    ("OFF_QUEUE_LEN",     "sk_buff_head", "qlen",           Some(4)),
    ("OFF_SKB_NEXT",      "sk_buff",      "next",           Some(8)),
    ("OFF_SKB_SK",        "sk_buff",      "sk",             Some(8)),
    ("OFF_SKB_CB",        "sk_buff",      "cb",             None),
    ("OFF_CB_FP",         "unix_skb_parms", "fp",           Some(8)),
    ("OFF_FP_COUNT",      "scm_fp_list",  "count",          Some(2)),
    ("OFF_FP_FILES",      "scm_fp_list",  "fp",             None),
];
/// From Linux 6.13 on a ring's table of files holds nodes.
#[rustfmt::skip]
const NODES: &[Offset] = &[
    ("OFF_RING_FILES_LEN", "io_ring_ctx", "file_table.data.nr", Some(4)),
    ("OFF_RING_FILES",    "io_ring_ctx",  "file_table.data.nodes", Some(8)),
    ("OFF_NODE_FILE",     "io_rsrc_node", "file_ptr",       Some(8)),
];
/// Before, the files themselves.
#[rustfmt::skip]
const FILES: &[Offset] = &[
    ("OFF_RING_FILES_LEN", "io_ring_ctx", "nr_user_files",  Some(4)),
    ("OFF_RING_FILES",    "io_ring_ctx",  "file_table.files", Some(8)),
];

#[cfg(target_arch = "x86_64")]
mod arch {
    /// Members of `pt_regs` that hold a syscall's arguments, also at its exit.
    pub(super) const ARGS: [&str; 4] = ["di", "si", "dx", "r10"];

    /// The member that holds a syscall's number, until it is restarted.
    pub(super) const SYSCALL: &str = "orig_ax";

    /// `THREAD_SIZE` without KASAN: where the kernel stack ends, just below which the registers are
    /// saved. Used on kernels before 5.15 only, which have no padding there.
    pub(super) const STACK_SIZE: u64 = 16 * 1024;
}

#[cfg(not(target_arch = "x86_64"))]
compile_error!("fdtracker's probes read syscall arguments from the registers of x86_64 only, so far");

/// The globals of the BPF object, as this kernel needs them.
#[derive(Debug)]
pub(super) struct Globals {
    offsets: Vec<(&'static str, u64)>,
    cgroup_by_css: u8,
    have_task_pt_regs: u8,
    own_tgid: u32,
    scan_direct: u8,
    direct_nodes: u8,
    /// Places of the hidden scan for which this kernel lacks something.
    pub(super) unscannable: Vec<UnscannablePlace>,
}

/// Where the members are that the hidden scan needs.
struct HiddenPlaces<'a> {
    btf: &'a Btf<'a>,
    kernel: KernelVersion,
    offsets: Vec<(&'static str, u64)>,
    direct_nodes: bool,
    unscannable: Vec<UnscannablePlace>,
}

impl<'a> HiddenPlaces<'a> {
    fn find(btf: &'a Btf<'a>, kernel: KernelVersion) -> Self {
        let mut places =
            Self { btf, kernel, offsets: Vec::new(), direct_nodes: false, unscannable: Vec::new() };
        for place in HiddenPlace::ALL {
            if let Err(error) = places.add(place) {
                places.unscannable.push((place, format!("the kernel has {error}")));
            }
        }
        places
    }

    fn add(&mut self, place: HiddenPlace) -> Result<(), BtfError> {
        let found = match place {
            HiddenPlace::Mapped => {
                // Without it the iterator crashes a kernel in which a process ends at the wrong
                // moment (kernel commit 7ff94f276f8e, Linux 6.2 and stable kernels since 5.15).
                self.btf.field("bpf_iter_seq_task_vma_info", "mm")?;
                members(self.btf, MAPPED)?
            }
            HiddenPlace::Registered => members(self.btf, REGISTERED)?,
            HiddenPlace::InFlight => members(self.btf, IN_FLIGHT)?,
            HiddenPlace::Direct => match members(self.btf, NODES) {
                Ok(nodes) => {
                    self.direct_nodes = true;
                    nodes
                }
                Err(_) => self.files()?,
            },
        };
        self.offsets.extend(found);
        Ok(())
    }

    fn files(&self) -> Result<Vec<(&'static str, u64)>, BtfError> {
        self.btf.field("io_fixed_file", "file_ptr")?;
        if self.kernel.at_least(5, 13) && !self.kernel.at_least(5, 15) {
            let (member, path) = ("files of one level".into(), "struct io_file_table".into());
            return Err(BtfError::NoMember { member, path });
        }
        members(self.btf, FILES)
    }

    fn has(&self, place: HiddenPlace) -> u8 {
        u8::from(can_scan(place, &self.unscannable))
    }
}

/// Where members are.
fn members(btf: &Btf<'_>, wanted: &[Offset]) -> Result<Vec<(&'static str, u64)>, BtfError> {
    let member = |(global, of, member, size): &Offset| {
        let field = btf.field(of, member)?;
        if let Some(expected) = *size
            && field.size != expected
        {
            let path = format!("struct {of}.{member}");
            return Err(BtfError::Size { path, found: field.size, expected });
        }
        Ok((*global, u64::from(field.offset)))
    };
    wanted.iter().map(member).collect()
}

impl Globals {
    /// Finds every offset in the kernel's BTF.
    ///
    /// # Errors
    /// Names the first member that isn't there or isn't of the expected size.
    pub(super) fn find(btf: &[u8], hierarchy: &Hierarchy, kernel: KernelVersion) -> Result<Self, BtfError> {
        let all = [OFFSETS, MAPPED, REGISTERED, IN_FLIGHT, NODES, FILES];
        let mut wanted: Vec<&str> = all.iter().flat_map(|some| some.iter().map(|(_, of, ..)| *of)).collect();
        wanted.extend(["css_set", "bpf_iter_seq_task_vma_info", "io_fixed_file"]);
        let btf = Btf::parse(btf, &wanted)?;
        let mut offsets = members(&btf, OFFSETS)?;
        let (cset_cgroup, cgroup_by_css) = match hierarchy.controller() {
            None => (u64::from(btf.field("css_set", "dfl_cgrp")?.offset), 0),
            Some(controller) => {
                let id = format!("{controller}_cgrp_id");
                let index = btf
                    .enumerator(&id)?
                    .ok_or_else(|| BtfError::NoMember { member: id, path: "enum cgroup_subsys_id".into() })?;
                (u64::from(btf.field("css_set", "subsys")?.offset) + 8 * u64::from(index), 1)
            }
        };
        offsets.push(("OFF_CSET_CGROUP", cset_cgroup));
        // Linux 5.14 renamed it. It was a long, of which the low half is enough.
        let state = btf.field("task_struct", "__state").or_else(|_| btf.field("task_struct", "state"))?;
        offsets.push(("OFF_TASK_STATE", u64::from(state.offset)));
        // `ss` is the last word.
        let regs = u64::from(btf.field("pt_regs", "ss")?.offset) + 8;
        offsets.push(("OFF_STACK_REGS", arch::STACK_SIZE - regs));
        let places = HiddenPlaces::find(&btf, kernel);
        offsets.extend(&places.offsets);
        Ok(Self {
            offsets,
            scan_direct: places.has(HiddenPlace::Direct),
            direct_nodes: u8::from(places.direct_nodes),
            unscannable: places.unscannable,
            cgroup_by_css,
            // bpf_task_pt_regs, kernel commit dd6e10fbd9fb
            have_task_pt_regs: u8::from(kernel.at_least(5, 15)),
            own_tgid: std::process::id(),
        })
    }

    /// Hands the globals to the loader.
    pub(super) fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        for (name, offset) in &self.offsets {
            loader.override_global(name, offset, true);
        }
        loader.override_global("CGROUP_BY_CSS", &self.cgroup_by_css, true);
        loader.override_global("HAVE_TASK_PT_REGS", &self.have_task_pt_regs, true);
        loader.override_global("OWN_TGID", &self.own_tgid, true);
        loader.override_global("SCAN_DIRECT", &self.scan_direct, true);
        loader.override_global("DIRECT_NODES", &self.direct_nodes, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_is_in_the_running_kernel() {
        let Ok(btf) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            return; // a kernel without BTF: nothing to look in
        };
        let kernel = crate::host::running_kernel().unwrap();
        for hierarchy in [Hierarchy::unified("/sys/fs/cgroup"), Hierarchy::v1("/sys/fs/cgroup/cpu", "cpu")] {
            let globals = Globals::find(&btf, &hierarchy, kernel).unwrap();
            assert!(globals.offsets.len() >= OFFSETS.len() + 3);
        }
    }
}
