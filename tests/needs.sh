#!/bin/sh
# What the tests need besides Go: program, Debian package. As root what is missing is
# installed; otherwise it is named, and the tests that need it are skipped. With CI=true
# something missing is a failure.
set -u
cd "$(dirname "$0")/.."

missing=
have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || [ -e "$1" ]; }
want() { have "$1" || missing="$missing $2"; }

want dovecot dovecot-core
want /usr/lib/dovecot/submission-login dovecot-submissiond
want /usr/lib/dovecot/imap-login dovecot-imapd
want openssl openssl
want curl curl
want swaks swaks
want msmtp msmtp
want python3 python3
want prlimit util-linux
want fail2ban-regex fail2ban
want gcc gcc
want node nodejs
mailer=tests/clients/testdata/node # a mail client that comes by npm, pinned
[ -d $mailer/node_modules/nodemailer ] || want npm npm

if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	echo "installing:$missing"
	export DEBIAN_FRONTEND=noninteractive
	# Services that packages bring are for the machine, not for the tests.
	policy=/usr/sbin/policy-rc.d
	made=
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && made=$policy
	fi
	apt-get update -q >/dev/null
	# shellcheck disable=SC2086
	apt-get install -y -q --no-install-recommends $missing >/dev/null && missing=
	[ -z "$made" ] || rm -f "$made"
fi
if [ ! -d $mailer/node_modules/nodemailer ] && have npm; then
	npm ci --prefix $mailer --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null ||
		missing="$missing nodemailer(npm)"
fi

[ -n "$missing" ] || exit 0
echo "missing (Debian packages):$missing"
[ "${CI:-}" != true ] || exit 1
echo "tests that need them are skipped"
