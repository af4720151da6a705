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
