//! Lines like those of real machines, each with its sequence id.

use std::fmt::Write as _;
use std::path::Path;

/// A sequence of lines, always the same.
#[derive(Debug)]
pub struct Corpus {
    templates: Vec<Vec<u8>>,
    next: u64,
}

impl Corpus {
    /// Real lines from a directory of logs when it is there (`SCRINIUM_TEST_LOGS`), else built-in ones.
    #[must_use]
    pub fn new() -> Self {
        let mut templates = Vec::new();
        if let Some(dir) = std::env::var_os("SCRINIUM_TEST_LOGS") {
            collect(Path::new(&dir), &mut templates);
        }
        if templates.is_empty() {
            templates = BUILT_IN
                .iter()
                .map(|line| line.as_bytes().to_vec())
                .collect();
        }
        Self { templates, next: 0 }
    }

    /// Appends the next `count` lines to `out`.
    pub fn lines(&mut self, count: u64, out: &mut Vec<u8>) {
        for _ in 0..count {
            let template = usize::try_from(self.next).unwrap_or(0) % self.templates.len();
            out.extend_from_slice(&self.templates[template]);
            let mut id = String::new();
            writeln!(id, " seq={:012}", self.next).unwrap();
            out.extend_from_slice(id.as_bytes());
            self.next += 1;
        }
    }
}

impl Default for Corpus {
    fn default() -> Self {
        Self::new()
    }
}

/// Every line of every regular file below `dir`, at most 20,000.
fn collect(dir: &Path, lines: &mut Vec<Vec<u8>>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, lines);
        } else if let Ok(bytes) = std::fs::read(&path) {
            let room = 20_000_usize.saturating_sub(lines.len());
            lines.extend(
                bytes
                    .split(|&byte| byte == b'\n')
                    .filter(|line| !line.is_empty())
                    .take(room)
                    .map(<[u8]>::to_vec),
            );
        }
    }
}

const BUILT_IN: [&str; 8] = [
    "2026-11-01T06:25:07.118223+00:00 srv-04 sshd[28113]: Failed password for invalid user oracle17 from 203.0.113.77 port 51122 ssh2",
    "Nov  1 06:25:08 fw-edge kernel: [1234.567] IN=eth0 OUT= SRC=198.51.100.9 DST=10.0.3.4 LEN=60 PROTO=TCP SPT=44122 DPT=445 SYN URGP=0",
    "1 1793544767.942897190 MX84 flows src=172.16.8.155 dst=198.51.100.252 mac=6B:6A:8E:D0:F8:7D protocol=tcp sport=7030 dport=443 pattern: allow all",
    "198.51.100.23 - jsmith [01/Nov/2026:06:25:09 +0000] \"GET /api/v1/orders/7711 HTTP/1.1\" 200 5120 \"-\" \"Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0\" rt=0.113",
    "{\"ts\":\"2026-11-01T06:25:09.500Z\",\"level\":\"warn\",\"service\":\"billing\",\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\",\"duration_ms\":318.25,\"msg\":\"slow query detected\"}",
    "Nov 01 2026 06:25:10 fw-dc : %ASA-6-302013: Built outbound TCP connection 1000017 for outside:203.0.113.9/443 to inside:10.0.3.21/51234",
    "2026-11-01 06:25:11,204 ERROR [http-nio-8080-exec-4] c.e.OrderService - payment gateway answered 502\twith a tab and caf\u{e9}",
    "type=USER_CMD msg=audit(1793514311.331:8812): pid=4410 uid=1000 auid=1000 ses=12 msg='cwd=\"/home/jsmith\" cmd=\"ls\" terminal=pts/0 res=success'",
];
