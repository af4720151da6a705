//! What each cipher of the archive costs: records of 1 MiB sealed into a segment in memory and opened again, one
//! thread.
//!
//! ```text
//! cargo bench -p scrinium-tests --bench ciphers
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and stops at the first surprise"
)]

use std::path::Path;

use scrinium_protocol::secret::Secret;
use scrinium_segment::Kind;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::reader::{Next, SegmentReader};
use scrinium_segment::writer::SegmentWriter;
use scrinium_tests::now;

const RECORDS: u64 = 256;

fn main() {
    let dir = Path::new("/dev/shm").join(format!("scrinium-ciphers-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let key = Secret::new([1; 32]);
    let record = vec![b'x'; 1 << 20];
    let mut first = None;
    for cipher in Cipher::ALL {
        let mut best = (f64::MAX, f64::MAX);
        for _ in 0..3 {
            let begun = now();
            let mut writer =
                SegmentWriter::create(&dir, &key, cipher, Kind::Archive, 1, [0; 16]).unwrap();
            let path = writer.path().to_owned();
            for _ in 0..RECORDS {
                writer.append(1, &[&record]).unwrap();
            }
            writer.finish().unwrap();
            let sealed = now().duration_since(begun).as_secs_f64();
            let begun = now();
            let reader = SegmentReader::open(&path, &key, Kind::Archive).unwrap();
            let mut cursor = reader.start();
            let mut opened = 0;
            while let Next::Record(_) = reader.next(&mut cursor).unwrap() {
                opened += 1;
            }
            assert_eq!(opened, RECORDS);
            best.0 = sealed.min(best.0);
            best.1 = now().duration_since(begun).as_secs_f64().min(best.1);
            std::fs::remove_file(path).unwrap();
        }
        let rate = |seconds: f64| RECORDS as f64 * 1.048_576 / seconds;
        let (sealed, opened) = (rate(best.0), rate(best.1));
        let first = *first.get_or_insert(sealed);
        println!(
            "{:12} sealed {sealed:6.0} MB/s, opened {opened:6.0} MB/s, {:.2} of the first",
            cipher.name(),
            sealed / first
        );
    }
    std::fs::remove_dir(&dir).unwrap();
}
