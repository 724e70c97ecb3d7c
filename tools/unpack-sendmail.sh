#!/bin/sh
# Unpacks Debian's Sendmail into build/sendmail, where tests run it beside the mail server of the machine. As root.
set -eu
cd "$(dirname "$0")/.."
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends m4 libwrap0 libldap-2.5-0 libsasl2-2 libnsl2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
(cd "$dir" && apt-get -o APT::Sandbox::User=root download sendmail-bin sendmail-cf)
for deb in "$dir"/*.deb; do dpkg -x "$deb" "$dir/root"; done
chmod 755 "$dir/root/usr/libexec/sendmail/sendmail" # without the group that it would run as
mkdir -p build
rm -rf build/sendmail
mv "$dir/root" build/sendmail
