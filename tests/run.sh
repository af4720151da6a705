#!/bin/sh
# Everything this project can check of itself: format, lints, every test, documentation.
#
#   sh tests/run.sh              the normal run
#   SCRINIUM_TEST_OUTAGE_S=60    cut the link for a whole minute in the outage test (15 s otherwise)
#   SCRINIUM_TEST_SOAK_S=600      everything at once for longer than 20 s
#   SCRINIUM_TEST_CACHE_MIB=100  a cache of this size and an outage of ten times as much, not 8 MiB and 24
#   SCRINIUM_TEST_FILES=100000   follow so many old files, not 15,000
#   SCRINIUM_TEST_STRANGERS=1    2,000 idle and 2,000 slow connections on every listener, 100,000 spoofed senders and an agent of 25,000 streams, not 1,000 each, 4,000 and 2,500
#   SCRINIUM_TEST_SEED=N         other moments for kills, cuts and rotations
#   SCRINIUM_TEST_WORLDS=100000  live through more than 10,000 simulated worlds
#   SCRINIUM_TEST_ROUNDS=1000    die more often than 200 times while the credential rolls, 16 while days go by, and 2 at each step of upkeep
#   SCRINIUM_TEST_YEARS=10       live through more than one simulated year of retention
#   SCRINIUM_TEST_LOGS=DIR       take the lines of the tests from real logs instead of built-in ones
#
# Installs what the tests need beyond cargo when it may (Debian, as root); says what it leaves out else.
set -eu
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

step "tools"
missing=""
for pair in chromium:chromium,fonts-dejavu-core chromedriver:chromium-driver rsyslogd:rsyslog logger:bsdutils script:bsdutils unshare:util-linux setpriv:util-linux nft:nftables tc:iproute2 logrotate:logrotate openssl:openssl mkfs.ext4:e2fsprogs swtpm:swtpm curl:curl bsdtar:libarchive-tools 7z:p7zip-full python3:python3-venv ssh:openssh-client sshd:openssh-server; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || [ -x "/usr/sbin/${pair%%:*}" ] || missing="$missing $(echo "${pair##*:}" | tr , " ")"
done
if [ -n "$missing" ]; then
    # In this run level nothing that is installed is started, sshd least of all.
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
            echo "SKIPPED: could not install$missing; the tests that need them do nothing and say so"
    else
        echo "SKIPPED: not installed and not ours to install:$missing; the tests that need them do nothing and say so"
    fi
else
    echo "all there"
fi

# Peers for the interoperation tests, in a place of their own: a Noise implementation, an S3, a mailbox. They are
# fetched while the compiler works.
peers() {
    if target/interop/bin/python -c "import noise.connection, moto, flask_cors, aiosmtpd" 2>/dev/null; then
        return
    fi
    { python3 -m venv target/interop && target/interop/bin/pip -q install noiseprotocol==0.3.1 \
        moto==5.2.5 flask==3.1.3 flask-cors==6.0.5 aiosmtpd==1.4.6; } >/dev/null 2>&1 ||
        echo "SKIPPED: could not install noiseprotocol, moto and aiosmtpd; the tests that need them do nothing and say so"
}
peers &

step "format"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "programs and tests"
cargo build --workspace --all-targets --locked

# In target/windows; says itself what it leaves out.
step "Windows"
sh tests/windows/setup.sh

wait # for the peers
step "tests"
# Mostly they wait: for a kill, a timeout, a disk. One command for all crates: another selection would
# build every dependency again. Apart from them: what measures, and the power cuts, whose disks would
# live on in the mount namespaces that other tests make meanwhile.
alone="flood:: strangers::everybody soak:: spool::e6 spool::l1 spool::l2 spool::a_link link::i10 files::f6"
cuts="power:: upkeep::power"
cargo test --workspace --locked --no-fail-fast -- --test-threads=3 $(printf -- '--skip %s ' $alone $cuts)

step "tests that measure, one at a time"
cargo test --workspace --locked --no-fail-fast --test all -- --test-threads=1 $alone

step "power cuts"
cargo test --workspace --locked --no-fail-fast --test all -- --test-threads=3 $cuts

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --document-private-items

printf '\nall checks passed\n'
