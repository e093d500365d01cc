//! `/proc/PID/stat` (fs/proc/array.c:do_task_stat).

/// What is needed of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::inspect) struct Stat {
    pub(in crate::inspect) comm: String,
    pub(in crate::inspect) state: char,
    pub(in crate::inspect) parent: u32,
    pub(in crate::inspect) session: u32,
    /// Device of the terminal that controls it, as the kernel packs it for user space; 0 if none does.
    pub(in crate::inspect) terminal: u64,
    /// The terminal's foreground process group.
    pub(in crate::inspect) foreground: i64,
    pub(in crate::inspect) flags: u64,
    pub(in crate::inspect) threads: u64,
}

/// include/linux/sched.h
const PF_KTHREAD: u64 = 0x0020_0000;

impl Stat {
    /// The name may have any characters, parentheses and line ends too: the last parenthesis ends it.
    pub(in crate::inspect) fn parse(text: &str) -> Option<Self> {
        let (before, rest) = text.rsplit_once(')')?;
        let (_pid, comm) = before.split_once('(')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        // proc(5) counts from 1 and has two fields before these.
        let number = |field: usize| words.get(field - 3).and_then(|word| word.parse::<i64>().ok());
        Some(Self {
            comm: comm.to_owned(),
            state: words.first()?.chars().next()?,
            parent: number(4).and_then(|n| n.try_into().ok())?,
            session: number(6).and_then(|n| n.try_into().ok()).unwrap_or(0),
            // Printed as an `int`.
            terminal: number(7).map_or(0, |n| u64::from(n as u32)),
            foreground: number(8).unwrap_or(-1),
            flags: number(9).and_then(|n| n.try_into().ok()).unwrap_or(0),
            threads: number(20).and_then(|n| n.try_into().ok()).unwrap_or(1),
        })
    }

    /// It has ended. A process whose first thread has ended while others run looks the same, but for the number of threads.
    pub(in crate::inspect) fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x') && self.threads <= 1
    }

    /// The first thread has ended, others run: nothing can be seen of their files by the process's number.
    pub(in crate::inspect) fn is_headless(&self) -> bool {
        self.state == 'Z' && self.threads > 1
    }

    pub(in crate::inspect) fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_5_10() {
        let text = "2371 (xfce4-session) S 2370 2371 2371 34816 2371 4194304 5183 8021 0 0 12 4 8 3 20 0 4 0 40231 \
                    402345984 5012 18446744073709551615 1 1 0 0 0 0 0 4096 65536 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(
            (stat.comm.as_str(), stat.state, stat.parent, stat.session),
            ("xfce4-session", 'S', 2370, 2371)
        );
        // pts/0: major 136
        assert_eq!((stat.terminal, stat.foreground, stat.threads), (136 << 8, 2371, 4));
        assert!(!stat.is_zombie() && !stat.is_kernel_thread());
    }

    #[test]
    fn names_have_spaces_and_parentheses() {
        let stat = Stat::parse("7 (a) R (b c) Z 1 7 7 0 -1 4228108 0 0 0 0 0 0 0 0 20 0 1 0 9").unwrap();
        assert_eq!((stat.comm.as_str(), stat.state, stat.foreground), ("a) R (b c", 'Z', -1));
        assert!(stat.is_zombie());
    }

    #[test]
    fn a_thread_of_the_kernel() {
        let stat = Stat::parse("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 5").unwrap();
        assert!(stat.is_kernel_thread());
    }

    #[test]
    fn a_process_without_its_first_thread() {
        let stat = Stat::parse("9 (x) Z 1 9 9 0 -1 4228108 0 0 0 0 0 0 0 0 20 0 2 0 9").unwrap();
        assert!(stat.is_headless() && !stat.is_zombie());
    }

    #[test]
    fn what_is_cut_off_is_nothing() {
        for text in ["", "1", "1 (x", "1 (x)", "1 (x) ", "1 (x) S", ") S 1", "1 (x) S y"] {
            assert_eq!(Stat::parse(text), None, "{text:?}");
        }
        assert!(Stat::parse("1 (x) S 1").is_some());
    }
}
