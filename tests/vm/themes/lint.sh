# What is to be said of packages without installing them.
# shellcheck shell=bash

mkdir "$WORK/lint"
for package in "$REPO"/apt/pool/*.deb; do
    case $package in *_"$OLD"_*) continue ;; esac
    name=$(dpkg-deb -f "$package" Package) root=$WORK/lint/$(dpkg-deb -f "$package" Package)
    dpkg-deb -x "$package" "$root"
    at_most $((15 << 20)) "$(stat -c %s "$package")" "$name: bytes"
    lintian --allow-root --fail-on error,warning "$package" >"$WORK/last" 2>&1 || fail "lintian: $(cat "$WORK/last")"
    for unit in "$root"/usr/lib/systemd/system/*.service; do
        [ -e "$unit" ] || continue
        # It may signal others, and see copies of their packets.
        case $unit in */isthmus-migrate.service) most=33 ;; *) most=25 ;; esac
        systemd-analyze security --offline=true --threshold=$most --no-pager "$unit" >"$WORK/last" 2>&1 ||
            fail "${unit##*/}: $(tail -1 "$WORK/last")"
        step "${unit##*/}: $(tail -1 "$WORK/last" | sed 's|.*: \([0-9.]* [A-Z]*\).*|\1|')"
    done
    for page in "$root"/usr/share/man/man*/*.gz; do
        zcat "$page" | groff -Kutf8 -man -ww -Tutf8 -z >"$WORK/last" 2>&1
        [ ! -s "$WORK/last" ] || fail "${page##*/}: $(cat "$WORK/last")"
    done
    for program in "$root"/usr/bin/*; do
        program=${program##*/}
        bash -n "$root/usr/share/bash-completion/completions/$program"
        grep -q "$program" "$root/usr/share/zsh/vendor-completions/_$program" "$root/usr/share/fish/vendor_completions.d/$program.fish"
        zcat "$root"/usr/share/man/man*/"$program".[18].gz | grep -q -- '\\-\\-version' || fail "$program: no page"
    done
done
step "lintian, man pages and completions of $(cd "$WORK/lint" && echo *)"

# rpmlint asks for a signature by a key that rpm knows; the host's rpm need not.
export HOME=$WORK
echo "%_dbpath $WORK/rpmdb" >"$WORK/.rpmmacros"
rpm --import "$REPO/isthmus.asc"
for package in "$REPO"/yum/*.rpm; do
    case $package in *-"$OLD"-*) continue ;; esac
    name=$(rpm -qp --qf '%{name}' "$package")
    at_most $((15 << 20)) "$(stat -c %s "$package")" "$name: bytes"
    rpmlint -c packaging/rpm/rpmlint.toml "$package" >"$WORK/last" 2>&1 || fail "rpmlint: $(cat "$WORK/last")"
    grep -q ' 0 errors, 0 warnings' "$WORK/last" || fail "rpmlint: $(cat "$WORK/last")"
done
step "rpmlint of $(cd "$WORK/lint" && echo *)"

# packed DIR: any programs; their bytes are not looked at.
packed() {
    ISTHMUS_XZ=1 packaging/build --programs "$WORK/programs" --pages "$TARGET/pages" --out "$WORK/$1" >"$WORK/last" 2>&1 ||
        fail "$(cat "$WORK/last")"
}

# Wherever, whenever and by whomever they are packed.
mkdir "$WORK/programs" "$WORK/elsewhere"
for program in edge-proxy vm-agent federation meshctl; do
    cp /bin/true "$WORK/programs/$program"
done
packed once
(
    export TZ=Pacific/Auckland LC_ALL=C TMPDIR=$WORK/elsewhere HOME=$WORK/elsewhere
    umask 077
    echo '%distribution elsewhere' >"$HOME/.rpmmacros"
    export -f packed fail
    unshare --uts bash -euc 'hostname elsewhere; packed again'
)
diff -r "$WORK/once" "$WORK/again" >"$WORK/last" || fail "the same programs make other packages: $(cat "$WORK/last")"
step "the same programs make the same bytes: $(find "$WORK/again" -type f | wc -l) packages"
