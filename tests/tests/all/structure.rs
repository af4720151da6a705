//! The shape of the tree, enforced.

use std::path::Path;

/// `protocol, segment, syslog <- agent, server, verify <- tests`: never sideways, never back.
#[test]
fn crates_depend_in_one_direction() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for (name, allowed) in [
        ("protocol", &[][..]),
        ("segment", &["protocol"]),
        ("syslog", &["protocol"]),
        ("agent", &["protocol", "segment", "syslog"]),
        ("server", &["protocol", "segment", "syslog"]),
        ("verify", &["protocol", "segment"]),
    ] {
        let text = std::fs::read_to_string(root.join(name).join("Cargo.toml")).unwrap();
        // What only tests need may come from beside: the simulation drives an agent against the server.
        let built = text.split("[dev-dependencies]").next().unwrap();
        for line in built.lines().filter(|line| !line.starts_with("name")) {
            if let Some((_, dependency)) = line.split_once("scrinium-") {
                let dependency = dependency.split(['.', ' ']).next().unwrap();
                assert!(
                    allowed.contains(&dependency),
                    "{name} must not depend on {dependency}"
                );
            }
        }
    }
}

/// Protocols do no I/O: no socket, clock, file, thread or random source.
#[test]
fn the_protocol_does_no_io() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("protocol/src");
    let mut dirs = vec![root];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for word in [
                "std::net",
                "std::fs",
                "std::thread",
                "SystemTime",
                "Instant::now",
                "getrandom",
                "tokio",
            ] {
                assert!(!code.contains(word), "{} uses {word}", path.display());
            }
        }
    }
}

/// What keeps rows of the catalogue under a lock holds that lock while it writes them: who waits for it must not keep the
/// threads that serve everybody (`server/src/waits.rs`).
#[test]
fn locks_that_are_held_over_a_write_are_taken_off_the_threads_that_serve() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("server/src");
    let mut dirs = vec![root];
    let mut looked_at = 0;
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let keeps_rows = [
                "catalogue: Arc<Catalogue>,",
                "connection: Mutex<Connection>,",
            ];
            if !keeps_rows.iter().any(|field| code.contains(field)) || !code.contains("lock(") {
                continue;
            }
            looked_at += 1;
            for word in [".lock().unwrap", "PoisonError::into_inner"] {
                assert!(
                    !code.contains(word),
                    "{} takes a lock by itself: use waits::lock",
                    path.display()
                );
            }
        }
    }
    assert!(looked_at >= 6, "{looked_at}");
}
