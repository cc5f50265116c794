"""
Stand-ins for the images `mariadb` and `wordpress` of the examples, made from Debian.

They are real: MariaDB and WordPress as Debian packs them, with Apache and PHP. What is
ours are the start scripts, which take those variables of the official images that the
examples set, and lay WordPress's files into an empty volume as those do.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import tempfile
import urllib.parse
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import images
from .archive import debian_archive

DATABASE_IMAGE, SITE_IMAGE = "mariadb:10.11", "wordpress:6"
BASE_IMAGE = "remora-test-wordpress:1"
CURL = ("curl", "--silent", "--fail", "--max-time", "60")
PACKAGES = (
    *("apache2", "libapache2-mod-php", "php-mysql", "php-xml"),
    *("wordpress", "wordpress-theme-twentytwentythree"),
)
OPTIONS = (
    '--aptopt=Acquire::Check-Valid-Until "false"',
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)
# Debian's WordPress is links into other packages; a volume is to have the files.
LAY_OUT = """
set -eu
mkdir -p "$1/usr/src"
cp -rL "$1/usr/share/wordpress" "$1/usr/src/wordpress" 2>/dev/null || true
test -e "$1/usr/src/wordpress/wp-login.php"
rm -f "$1/usr/src/wordpress/wp-config.php" "$1/var/www/html/index.html"
rm -rf "$1/usr/share/wordpress" "$1/usr/share/perl" "$1"/usr/bin/*mariadb* \
    "$1"/usr/bin/*mysql* "$1/var/cache/apt" "$1/var/lib/apt/lists"
echo "ServerName localhost" >> "$1/etc/apache2/apache2.conf"
"""
FROM_FILE = """
set -eu
password() { if [ -n "$2" ]; then cat "$2"; else printf %s "$1"; fi; }
"""
START_DATABASE = (
    FROM_FILE
    + """
password=$(password "${MARIADB_PASSWORD:-}" "${MARIADB_PASSWORD_FILE:-}")
# By default it reserves more addresses than a process of the lab's kernel has.
printf '[mariadbd]\ninnodb_buffer_pool_size_max = 64M\n' > /etc/my.cnf
mkdir -p /run/mysqld
cat > /run/mysqld/start.sql <<SQL
CREATE DATABASE IF NOT EXISTS $MARIADB_DATABASE;
CREATE USER IF NOT EXISTS '$MARIADB_USER'@'%' IDENTIFIED BY '$password';
GRANT ALL ON $MARIADB_DATABASE.* TO '$MARIADB_USER'@'%';
SQL
chmod 0644 /run/mysqld/start.sql
sed 's|^exec mariadbd|& --init-file=/run/mysqld/start.sql|' /start-database > /tmp/start
exec sh /tmp/start
"""
)
START_SITE = (
    FROM_FILE
    + """
cd /var/www/html
if [ ! -e index.php ]; then
    cp -r /usr/src/wordpress/. .
    chown -R www-data: .
fi
WORDPRESS_DB_PASSWORD=$(password "${WORDPRESS_DB_PASSWORD:-}" \
    "${WORDPRESS_DB_PASSWORD_FILE:-}")
export WORDPRESS_DB_PASSWORD
cat > wp-config.php <<'PHP'
<?php
foreach (['NAME', 'USER', 'PASSWORD', 'HOST'] as $key)
    define("DB_$key", getenv("WORDPRESS_DB_$key"));
$table_prefix = 'wp_';
define('WP_HTTP_BLOCK_EXTERNAL', true);
define('DISABLE_WP_CRON', true);
if (!defined('ABSPATH')) define('ABSPATH', __DIR__ . '/');
require_once ABSPATH . 'wp-settings.php';
PHP
exec apache2ctl -D FOREGROUND
"""
)


def site_tar() -> Path:
    """Return a Debian root with WordPress as a tar; the first call makes it."""
    recipe = repr((PACKAGES, OPTIONS, LAY_OUT))
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    path = images.CACHE / f"wordpress-{digest}.tar"
    images.CACHE.mkdir(parents=True, exist_ok=True)
    with (images.CACHE / "wordpress.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=images.CACHE, prefix="build-") as made:
                part = Path(made) / "part.tar"
                images.command(
                    *("mmdebstrap", "--quiet", "--mode=root", "--variant=essential"),
                    *(*OPTIONS, f"--include={','.join(PACKAGES)}"),
                    *(f"--customize-hook=sh -c '{LAY_OUT}' lay-out \"$1\"",),
                    *("bookworm", str(part), debian_archive()),
                )
                part.rename(path)
    return path


def load(docker: Callable[..., Any]) -> None:
    """Make both images in an engine; *docker* runs its command line."""
    docker("import", str(images.database_tar()), images.DATABASE_IMAGE, timeout_s=300)
    docker("import", str(site_tar()), BASE_IMAGE, timeout_s=300)
    for image, base, start in (
        (DATABASE_IMAGE, images.DATABASE_IMAGE, START_DATABASE),
        (SITE_IMAGE, BASE_IMAGE, START_SITE),
    ):
        recipe = f"FROM {base}\nCMD {json.dumps(['sh', '-c', start])}\n"
        docker("build", "-q", "-t", image, "-", stdin=recipe.encode(), timeout_s=120)


class Site:
    """The site at a *port* of a machine, used as people and their programs use it."""

    USER, PASSWORD = "editor", "a-long-password"

    def __init__(self, run: Callable[[list[str]], str], *, port: int = 8080) -> None:
        """*run* returns what a command on the machine prints, '' if it fails."""
        self._run = run
        self._url = f"http://127.0.0.1:{port}"

    def page(self, path: str = "/") -> str:
        """Return the page at *path*, '' if there is none."""
        return self._run([*CURL, f"{self._url}{path}"])

    def install(self) -> None:
        """Let WordPress make its tables, by its form."""
        form = {
            "weblog_title": "Whale",
            "user_name": self.USER,
            "admin_password": self.PASSWORD,
            "admin_password2": self.PASSWORD,
            "pw_weak": "1",
            "admin_email": "editor@example.net",
            "blog_public": "0",
        }
        url = f"{self._url}/wp-admin/install.php?step=2"
        answer = self._run([*CURL, "--data", urllib.parse.urlencode(form), url])
        assert "Success!" in answer, answer[-2000:]

    def post(self, title: str) -> None:
        """Publish a post."""
        content = {"post_title": title, "post_status": "publish"}
        self._call("wp.newPost", content)

    def titles(self) -> list[str]:
        """Return the titles of all posts, sorted."""
        found = self._call("wp.getPosts", {"number": 1000}, ["post_title"])
        return sorted(each["post_title"] for each in found)

    def _call(self, method: str, *arguments: Any) -> Any:
        body = xmlrpc.client.dumps((1, self.USER, self.PASSWORD, *arguments), method)
        url = f"{self._url}/xmlrpc.php"
        answer = self._run([*CURL, "-H", "Content-Type: text/xml", "--data", body, url])
        (value,), _ = xmlrpc.client.loads(answer)
        return value
