# .rpm by rpmbuild. Debian's rpm has none of systemd's macros: the scriptlets
# here are what they stand for.
# shellcheck shell=bash

make_rpm() {
    local package=$1 work=$2 out=$3 laid=$2/laid ZSH=usr/share/zsh/site-functions cpu
    case $ARCH in
    amd64) cpu=x86_64 ;;
    arm64) cpu=aarch64 ;;
    *) echo "packaging/build: $ARCH: what does rpm call it?"; return 1 ;;
    esac
    lay "$package" "$laid"
    install -D -m 0644 ../LICENSE "$laid/usr/share/licenses/$package/LICENSE"
    if [ ${#UNITS[@]} -gt 0 ]; then
        install -d "$laid/usr/lib/systemd/system-preset"
        printf 'enable %s\n' "${UNITS[@]}" >"$laid/usr/lib/systemd/system-preset/80-$package.preset"
    fi
    rpm_spec "$package" "$laid" >"$work/$package.spec"
    # What is laid is stripped and compressed already. HOME: nobody's own macros.
    HOME=$work LC_ALL=C rpmbuild -bb --quiet --target "$cpu-linux" \
        --define "_topdir $work" --define "_rpmdir $out" --define "_buildhost isthmus" \
        --define "_rpmfilename %{name}-%{version}-%{release}.%{arch}.rpm" \
        --define "_binary_payload w${ISTHMUS_XZ:-6}.xzdio" \
        --define "use_source_date_epoch_as_buildtime 1" \
        --define "clamp_mtime_to_source_date_epoch 1" \
        --define "__os_install_post %{nil}" --define "debug_package %{nil}" \
        --define "_build_id_links none" "$work/$package.spec" >"$work/log" 2>&1 ||
        { cat "$work/log"; return 1; }
}

rpm_spec() {
    local package=$1 laid=$2 need script
    cat <<SPEC
Name: $package
Version: $VERSION
Release: 1
Summary: ${SUMMARY^}
License: Apache-2.0
URL: $HOMEPAGE
Vendor: Isthmus authors
Packager: $MAINTAINER
SPEC
    for need in "${NEEDS[@]}"; do
        echo "Requires: $need = %{version}"
    done
    [ ${#UNITS[@]} = 0 ] || printf 'Requires: systemd\nRequires(post,preun,postun): systemd\n'
    # The other one every Fedora has, and both call this one so.
    [[ $WANTS != *nftables* ]] || echo "Recommends: nftables"
    printf '\n%%description\n%s\n' "$TEXT"
    printf '\n%%install\ncp -a %s/. %%{buildroot}/\n' "$laid"
    printf '\n%%files\n%%defattr(-, root, root, -)\n'
    (cd "$laid" && rpm_files)
    [ ${#UNITS[@]} = 0 ] || for script in pre post preun postun; do
        printf '\n%%%s\n' "$script"
        sed -e "s|@PACKAGE@|$package|g" -e "s|@UNITS@|${UNITS[*]}|g" \
            -e "s|@UPGRADE@|$UPGRADE|g" -e "s|@RUN@|${RUN[*]}|g" \
            -e "s~@BEFORE_REMOVAL@~$BEFORE_REMOVAL~g" "rpm/$script"
    done
    cat <<SPEC

%changelog
* $(LC_ALL=C date -u -d "@$SOURCE_DATE_EPOCH" '+%a %b %d %Y') $MAINTAINER - $VERSION-1
- What has changed: $HOMEPAGE/blob/main/CHANGELOG.md
SPEC
}

# Every file; directories that a machine may lack, so that none is left behind.
rpm_files() {
    local file
    find . ! -type d | sort | sed 's|^\.||' | while read -r file; do
        case $file in
        /etc/*) echo "%config(noreplace) $file" ;;
        /usr/share/licenses/*) echo "%license $file" ;;
        *) echo "$file" ;;
        esac
    done
    find . -type d \( -path './etc/isthmus*' -o -path './usr/share/licenses/?*' -o -path './usr/share/doc/?*' \
        -o -path './usr/share/bash-completion*' -o -path './usr/share/zsh*' -o -path './usr/share/fish*' \) |
        sort | sed 's|^\.|%dir |'
}
