# .deb by dpkg-deb: what debhelper would do for four packages is this.
# shellcheck shell=bash

make_deb() {
    local package=$1 work=$2 out=$3 root=$2/root control=$2/root/DEBIAN script
    local doc=$root/usr/share/doc/$package ZSH=usr/share/zsh/vendor-completions
    mkdir -p "$control"
    lay "$package" "$root"
    install -D -m 0644 deb/copyright "$doc/copyright"
    deb_changelog | gzip -9n >"$doc/changelog.gz"
    mkdir -p "$root/usr/share/lintian/overrides"
    sed "s|@PACKAGE@|$package|g" deb/lintian-overrides >"$root/usr/share/lintian/overrides/$package"
    if [ ${#UNITS[@]} -gt 0 ]; then
        for script in postinst prerm postrm; do
            sed -e "s|@PACKAGE@|$package|g" -e "s|@UNITS@|${UNITS[*]}|g" \
                -e "s|@UPGRADE@|$UPGRADE|g" -e "s|@STATE@|${STATE[*]}|g" -e "s|@RUN@|${RUN[*]}|g" \
                -e "s~@BEFORE_REMOVAL@~$BEFORE_REMOVAL~g" "deb/$script" >"$control/$script"
            chmod 0755 "$control/$script"
        done
    fi
    (cd "$root" && find . -type f -path './etc/*' | sed 's|^\.||' | sort) >"$control/conffiles"
    [ -s "$control/conffiles" ] || rm "$control/conffiles"
    (cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$control/md5sums"
    deb_control "$package" "$work" >"$control/control"
    dpkg-deb --root-owner-group -Zxz -z"${ISTHMUS_XZ:-6}" --build "$root" "$out" >/dev/null
}

deb_control() {
    local package=$1 work=$2 depends need
    depends=$(deb_libraries "$work")
    for need in "${NEEDS[@]}"; do
        depends+=", $need (= $VERSION)"
    done
    [ ${#UNITS[@]} = 0 ] || depends+=", systemd"
    cat <<CONTROL
Package: $package
Source: isthmus
Version: $VERSION
Architecture: $ARCH
Maintainer: $MAINTAINER
Installed-Size: $(du -sk --apparent-size --exclude=DEBIAN "$work/root" | cut -f1)
Depends: $depends
${WANTS:+Recommends: $WANTS
}Section: net
Priority: optional
Homepage: $HOMEPAGE
Description: $SUMMARY
$(sed 's/^/ /' <<<"$TEXT")
CONTROL
}

# The libraries that its program is linked against.
deb_libraries() {
    mkdir -p "$1/debian"
    printf 'Source: isthmus\n\nPackage: any\nArchitecture: any\n' >"$1/debian/control"
    (cd "$1" && dpkg-shlibdeps -O "root/usr/bin/$PROGRAM" 2>/dev/null) | sed 's/^shlibs:Depends=//'
}

deb_changelog() {
    cat <<CHANGELOG
isthmus ($VERSION) unstable; urgency=medium

  * What has changed:
    $HOMEPAGE/blob/main/CHANGELOG.md

 -- $MAINTAINER  $(date -uR -d "@$SOURCE_DATE_EPOCH")
CHANGELOG
}
