#!/bin/sh
# The first process of the container: a VNC server, a session on it, and a job that needs neither.
# usage: session.sh whole|without-ibus|simplified DISPLAY PORT
session=$1 port=$3
export HOME=/root USER=root LANG=C.UTF-8 DISPLAY=":$2"
cd /root || exit

# What the container's engine says when it ends it. All but this one are told.
trap 'trap "" TERM; kill -TERM -1; wait; exit 0' TERM

[ -s /etc/machine-id ] || dbus-uuidgen >/etc/machine-id
mkdir -p /tmp/.X11-unix
chmod 1777 /tmp/.X11-unix

# A job of somebody's who logs out meanwhile: it counts. It is dumped, and ended, at any moment: its file is never empty in between.
: >/root/result
setsid perl -e '$0 = "job"; while (1) { open F, "+<", "/root/result"; print F ++$n; close F; select undef, undef, undef, 0.1 }' \
    </dev/null >/root/job.log 2>&1 &

Xtightvnc "$DISPLAY" -geometry 1024x768 -depth 24 -desktop desktop -rfbport "$port" -localhost \
    -fp /usr/share/fonts/X11/misc -co /etc/X11/rgb >/root/vnc.log 2>&1 &
until xdpyinfo >/dev/null 2>&1; do sleep 0.1; done

case $session in
whole) export GTK_IM_MODULE=ibus QT_IM_MODULE=ibus XMODIFIERS=@im=ibus ;;
*) export GTK_IM_MODULE=xim ;;
esac
eval "$(dbus-launch --sh-syntax)"
export DBUS_SESSION_BUS_ADDRESS
[ "$session" = whole ] && ibus-daemon -xdr >/root/ibus.log 2>&1
case $session in
simplified) xfwm4 >/root/session.log 2>&1 & ;;
*) xfce4-session >/root/session.log 2>&1 & ;;
esac
# Until all have ended, or a signal has been dealt with.
wait
