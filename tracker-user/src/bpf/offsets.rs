//! Where the members that the probes read are in this kernel.

use aya::EbpfLoader;

use super::btf::{Btf, BtfError};
use crate::runtime::Hierarchy;

/// An offset that the programs need: name of the global, struct, member, and the bytes that are read there
/// (`None`: an address is computed, nothing is read).
type Offset = (&'static str, &'static str, &'static str, Option<u32>);

/// One for each global in tracker-ebpf/src/kernel.rs that isn't set by [`Globals::find`] itself.
#[rustfmt::skip]
const OFFSETS: &[Offset] = &[
    ("OFF_TASK_FILES",    "task_struct",  "files",          Some(8)),
    ("OFF_TASK_TGID",     "task_struct",  "tgid",           Some(4)),
    ("OFF_TASK_SIGNAL",   "task_struct",  "signal",         Some(8)),
    ("OFF_TASK_CGROUPS",  "task_struct",  "cgroups",        Some(8)),
    ("OFF_TASK_STACK",    "task_struct",  "stack",          Some(8)),
    ("OFF_SIGNAL_LIVE",   "signal_struct","live.counter",   Some(4)),
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

#[cfg(target_arch = "x86_64")]
mod arch {
    /// Members of `pt_regs` that hold a syscall's arguments, also at its exit.
    pub(super) const ARGS: [&str; 4] = ["di", "si", "dx", "r10"];

    /// The member that holds a syscall's number, until it is restarted.
    pub(super) const SYSCALL: &str = "orig_ax";

    /// `THREAD_SIZE` without KASAN: where the kernel stack ends, just below which the registers are saved. Used on
    /// kernels before 5.15 only, which have no padding there.
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
}

impl Globals {
    /// Finds every offset in the kernel's BTF.
    ///
    /// # Errors
    /// Names the first member that isn't there or isn't of the expected size.
    pub(super) fn find(
        btf: &[u8],
        hierarchy: &Hierarchy,
        kernel: crate::host::KernelVersion,
    ) -> Result<Self, BtfError> {
        let mut wanted: Vec<&str> = OFFSETS.iter().map(|(_, of, ..)| *of).collect();
        wanted.push("css_set");
        let btf = Btf::parse(btf, &wanted)?;
        let mut offsets = Vec::with_capacity(OFFSETS.len() + 2);
        for (global, of, member, size) in OFFSETS {
            let field = btf.field(of, member)?;
            if let Some(expected) = *size
                && field.size != expected
            {
                let path = format!("struct {of}.{member}");
                return Err(BtfError::Size { path, found: field.size, expected });
            }
            offsets.push((*global, u64::from(field.offset)));
        }
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
        // `ss` is the last word.
        let regs = u64::from(btf.field("pt_regs", "ss")?.offset) + 8;
        offsets.push(("OFF_STACK_REGS", arch::STACK_SIZE - regs));
        Ok(Self {
            offsets,
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
        let kernel = crate::host::KernelVersion::running().unwrap();
        for hierarchy in [Hierarchy::unified("/sys/fs/cgroup"), Hierarchy::v1("/sys/fs/cgroup/cpu", "cpu")] {
            let globals = Globals::find(&btf, &hierarchy, kernel).unwrap();
            assert_eq!(globals.offsets.len(), OFFSETS.len() + 2);
        }
    }
}
