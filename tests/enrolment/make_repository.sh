# Makes a repository of one empty package, $1 in version $2, and tells apt of nothing else.
set -eu
mkdir -p /srv/repository/package/DEBIAN
cd /srv/repository
control=package/DEBIAN/control
{
    printf 'Package: %s\nVersion: %s\nArchitecture: all\n' "$1" "$2"
    printf 'Maintainer: nobody <nobody@example.org>\nDescription: empty\n'
} > "$control"
dpkg-deb --build package "$1.deb" > /dev/null
{
    cat "$control"
    printf 'Filename: ./%s.deb\nSize: %s\n' "$1" "$(stat -c %s "$1.deb")"
    printf 'SHA256: %s\n\n' "$(sha256sum < "$1.deb" | cut -c 1-64)"
} > Packages
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/srv/repository ./' > /etc/apt/sources.list
