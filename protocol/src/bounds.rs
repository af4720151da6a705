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
    // An end of alternatives may be escaped or of a class: only the library knows, so none is taken for an end.
    let begun = text.bytes().filter(|byte| *byte == b'{').count();
    (begun > GLOB_BRACES_MAX).then(|| {
        format!("has {begun} braces that begin alternatives, and may have {GLOB_BRACES_MAX}")
    })
}

/// Bytes of a pattern: as many as a path.
const GLOB_LEN_MAX: usize = 4096;
/// Braces that begin alternatives, whether they lie within each other or not. The library takes 250 levels, and each pair of
/// braces within another makes up to three.
pub const GLOB_BRACES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_neither_long_nor_deep() {
        for good in ["/var/log/**/*.log", "/a/{b,c{d,e}}", "/x/}}}", ""] {
            assert_eq!(glob_problem(good), None, "{good}");
        }
        let deep = |depth: usize| format!("/{}{}", "{a,".repeat(depth), "}".repeat(depth));
        assert_eq!(glob_problem(&deep(GLOB_BRACES_MAX)), None);
        assert!(glob_problem(&deep(GLOB_BRACES_MAX + 1)).is_some());
        // What looks like an end and is none.
        for (begin, end) in [(r"{\}", "}"), ("{[}]", "}"), ("{[!}]", "}")] {
            let depth = GLOB_BRACES_MAX + 1;
            let text = format!("{}a{}", begin.repeat(depth), end.repeat(depth));
            assert!(glob_problem(&text).is_some(), "{begin}");
        }
        assert!(glob_problem(&"a".repeat(GLOB_LEN_MAX + 1)).is_some());
    }
}
