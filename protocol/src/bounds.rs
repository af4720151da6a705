//! Bounds of texts that both programs compile.

/// What is wrong with a pattern of paths or names, in words that follow "the pattern"; `None` when it may be compiled.
/// A library that is given one that is nested deeper panics.
#[must_use]
pub fn glob_problem(text: &str) -> Option<String> {
    if text.len() > GLOB_LEN_MAX {
        return Some(format!(
            "has {} bytes, and may have {GLOB_LEN_MAX}",
            text.len()
        ));
    }
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > GLOB_DEPTH_MAX {
            return Some(format!(
                "has alternatives within alternatives more than {GLOB_DEPTH_MAX} deep"
            ));
        }
    }
    None
}

/// Bytes of a pattern: as many as a path.
const GLOB_LEN_MAX: usize = 4096;
/// Braces within braces.
const GLOB_DEPTH_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_neither_long_nor_deep() {
        for good in ["/var/log/**/*.log", "/a/{b,c{d,e}}", "/x/}}}", ""] {
            assert_eq!(glob_problem(good), None, "{good}");
        }
        let deep = |depth: usize| format!("/{}{}", "{a,".repeat(depth), "}".repeat(depth));
        assert_eq!(glob_problem(&deep(GLOB_DEPTH_MAX)), None);
        assert!(glob_problem(&deep(GLOB_DEPTH_MAX + 1)).is_some());
        assert!(glob_problem(&"a".repeat(GLOB_LEN_MAX + 1)).is_some());
    }
}
