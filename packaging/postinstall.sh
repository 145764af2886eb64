#!/bin/sh
# Makes the users of sysusers.d/dovetail.conf, which would otherwise come with the next boot.
# Called with "configure" by dpkg, with the number of versions installed by rpm.
set -e
case $1 in
configure | [1-9]*) ;;
*) exit 0 ;;
esac
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers ${DPKG_ROOT:+--root="$DPKG_ROOT"} dovetail.conf
else
	echo "dovetail: there is no systemd-sysusers: without Dovecot make the users dovecot and dovenull" >&2
fi
