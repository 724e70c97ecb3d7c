#!/bin/sh
# Installs what "make interop" runs, as root on Debian: packages, mail servers that
# are only unpacked, into build, as they cannot be installed beside Postfix, and a
# verifier from npm. What is there already is left alone. Builds a Vault, which takes
# minutes for the first time, and 3 GB of Go's caches.
set -eu
cd "$(dirname "$0")/.."

# Debian starts the daemons of a package unless this says not to.
if [ ! -e /usr/sbin/policy-rc.d ]; then
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod 755 /usr/sbin/policy-rc.d
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi

updated=
install() {
	[ -n "$updated" ] || apt-get update -qq
	updated=1
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

missing=
need() { # program package…
	command -v "$1" >/dev/null && return
	shift
	missing="$missing $*"
}
need named bind9
need delv bind9-dnsutils
need knotd knot
need nsd nsd
need unbound unbound
need unbound-host unbound-host
need rspamd rspamd
need haproxy haproxy
need opendkim opendkim
need postfix postfix
need node nodejs
need npm npm
/usr/bin/python3 -c 'import dkim, dns, nacl' 2>/dev/null || missing="$missing python3-dkim python3-dnspython python3-nacl"
/usr/bin/perl -MMail::DKIM -e 1 2>/dev/null || missing="$missing libmail-dkim-perl"
# shellcheck disable=SC2086 # a list
[ -z "$missing" ] || install $missing

if [ ! -x build/exim/usr/sbin/exim4 ]; then
	install libdb5.3 libgnutls-dane0 libidn12 libpcre2-8-0
	mkdir -p build/exim
	(cd build/exim && apt-get -o APT::Sandbox::User=root -qq download exim4-daemon-light && dpkg-deb -x exim4-daemon-light_*.deb .)
fi
# The user that Exim runs as is compiled into it.
id Debian-exim >/dev/null 2>&1 || useradd --system --no-create-home --user-group --shell /usr/sbin/nologin Debian-exim

[ -d build/sendmail ] || tools/unpack-sendmail.sh

# The tests build it again, with what this leaves in Go's cache.
go -C tools/vault build -o /dev/null .

# A version that runs with Debian 12's Node.js.
[ -d build/npm/node_modules/mailauth ] || npm install --silent --no-audit --no-fund --prefix build/npm mailauth@4.9.5
