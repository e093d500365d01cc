#!/bin/busybox sh
# The first process of a guest in which CRIU works, as the command in /arguments has it. What comes of that is told on the second
# serial port.
/bin/busybox --install -s /bin
export PATH=/bin:/criu:/build HOME=/ NO_COLOR=1

# CRIU finds no mount for what is on the first root (CRIU: mount.c): everything moves to a tmpfs.
if [ ! -e /moved ]; then
    mkdir /moved
    mount -t tmpfs -o mode=755 tmpfs /moved
    for entry in /*; do
        [ "$entry" = /moved ] || cp -a "$entry" /moved
    done
    mkdir /moved/moved
    # Where CRIU looks for watched files; it complains of each that isn't there (CRIU: irmap.c).
    for hint in /etc /var/spool /var/log /usr/share/dbus-1/services /usr/share/dbus-1/system-services \
        /var/lib/polkit-1/localauthority /usr/share/polkit-1/actions /lib/udev; do
        mkdir -p "/moved$hint"
    done
    exec switch_root /moved /init
fi

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
ip link set lo up
# Until the kernel has random numbers, each start of CRIU waits seconds for some (libuuid: random_get_bytes). Who blocks makes it hurry.
head -c 1 /dev/random >/dev/null
for module in /modules/*; do
    insmod "$module" || echo "@@ module $module" >/dev/ttyS1
done

if [ -b /dev/vda ]; then
    mkdir -p /desktop
    mount -t ext4 -o ro /dev/vda /desktop
fi

set --
while read -r argument; do set -- "$@" "$argument"; done </arguments

echo "@@ kernel $(uname -r)" >/dev/ttyS1
echo "@@ version $(uname -v)" >/dev/ttyS1
echo "@@ criu $(criu --version | sed -n 's/^Version: //p')" >/dev/ttyS1
"$@" >/dev/ttyS1
code=$?
# What is told besides, not in the middle of a line.
[ -f /record ] && cat /record >/dev/ttyS1
echo "@@ end $code" >/dev/ttyS1
poweroff -f
