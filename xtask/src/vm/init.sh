#!/bin/busybox sh
# The first process of a guest. Runs the tests, and tells on the second serial port how they went; the first one is the kernel's.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ NO_COLOR=1

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t securityfs securityfs /sys/kernel/security
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
ip link set lo up

set --
while read -r argument; do set -- "$@" "$argument"; done </arguments
# As the kernel was told.
for name in $(echo "$LEFT_OUT" | tr , ' '); do set -- "$@" --skip "$name"; done

echo "@@ kernel $(uname -r)" >/dev/ttyS1
echo "@@ version $(uname -v)" >/dev/ttyS1
echo "@@ preemption $(cat /sys/kernel/debug/sched/preempt)" >/dev/ttyS1
/build/deps/integration --color never "$@" >/dev/ttyS1
echo "@@ end $?" >/dev/ttyS1
poweroff -f
