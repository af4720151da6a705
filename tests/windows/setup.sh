#!/bin/sh
# Builds the agent for Windows and prepares Wine to run it, in target/windows:
#
#   agent/scrinium-agent.exe   the agent, and beside it the test double of wevtapi.dll
#   wine                       WORD... : runs a Windows program, headless
#
# Says what it leaves out and why, and then removes the agent, so that no test runs an old one.
set -eu
cd "$(dirname "$0")/../.."
own="$PWD/target/windows"
target=x86_64-pc-windows-gnu
mkdir -p "$own/agent"
rm -f "$own/agent/scrinium-agent.exe"

leave_out() {
    echo "SKIPPED: $*; the tests on Windows do nothing and say so"
    exit 0
}

install() {
    missing=""
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 1
    apt-get -q -o DPkg::Lock::Timeout=600 update >"$own/apt.log" 2>&1 &&
        DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 install -y --no-install-recommends $missing >>"$own/apt.log" 2>&1
}

install gcc-mingw-w64-x86-64-posix wine wine64 || leave_out "no mingw or Wine, and not ours to install"

export CC_x86_64_pc_windows_gnu=x86_64-w64-mingw32-gcc CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc
[ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ] || timeout 120 rustup -q target add $target >"$own/rustup.log" 2>&1 ||
    leave_out "no standard library for $target, and rustup cannot fetch it"

# Without debug information: nobody debugs it here.
CARGO_TARGET_DIR="$own/build" CARGO_PROFILE_DEV_DEBUG=0 cargo build --locked -p scrinium-agent --target $target

cat >"$own/wine" <<'W'
#!/bin/sh
here="$(dirname "$(readlink -f "$0")")"
unset DISPLAY
export WINEPREFIX="$here/prefix" WINEDEBUG=-all
export WINEDLLOVERRIDES="mscoree=;mshtml=;winemenubuilder.exe=;wevtapi=n"
exec wine "$@"
W
chmod +x "$own/wine"
if [ ! -e "$own/prefix/system.reg" ]; then
    timeout 300 "$own/wine" wineboot -i >"$own/wineboot.log" 2>&1 || true
    WINEPREFIX="$own/prefix" timeout 60 wineserver -w || true
    [ -e "$own/prefix/system.reg" ] || leave_out "Wine could not be set up"
fi
# What Rust's standard library wants and Wine 8 does not have.
x86_64-w64-mingw32-gcc -O2 -shared -nostdlib -o "$own/prefix/drive_c/windows/system32/bcryptprimitives.dll" tests/windows/bcryptprimitives.c -ladvapi32
# Wine's own Event Log is a stub.
x86_64-w64-mingw32-gcc -O2 -Wall -shared -o "$own/agent/wevtapi.dll" tests/windows/wevtapi.c
cp "$own/build/$target/debug/scrinium-agent.exe" "$own/agent/"
