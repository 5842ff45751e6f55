//! Keeps line numbers where a diff adds or removes lines.
//!
//! Comes in: a changed file. Decided: where a `#line` may stand: not inside a comment, a string, parentheses or a
//! continued line. Goes out: the new text, in which the lines that did not change carry the numbers they had before, so
//! that `__LINE__` in them (WARN, BUG, initcall names) does not change their code. A `#line` that finds no good place
//! is left out, which costs noise and never correctness.

use diff_analyzer::source_diff::{FileChange, lines};

/// The new text with `#line` directives; nothing when no line moves.
pub fn keep_numbers(change: &FileChange) -> Option<Vec<u8>> {
    let edits: Vec<_> = change.hunks.iter().flat_map(|hunk| &hunk.edits).collect();
    if edits.iter().all(|edit| edit.old.len() == edit.new.len()) {
        return None;
    }
    let text = lines(&change.new);
    let mut result = Vec::with_capacity(change.new.len() + 64 * edits.len());
    let mut scanner = Scanner::default();
    let mut edits = edits.into_iter().peekable();
    // Lines that the text is ahead of its old place, and lines that the compiler has been told of.
    let (mut ahead, mut told) = (0isize, 0isize);
    for (index, line) in text.iter().enumerate() {
        while let Some(edit) = edits.next_if(|edit| edit.new.end <= index) {
            ahead += edit.new.len() as isize - edit.old.len() as isize;
        }
        let changed = edits.peek().is_some_and(|edit| edit.new.contains(&index));
        // A directive in a part that is not compiled was not seen: behind each `#endif` it is said again.
        let again = ahead != 0 && scanner.after_condition;
        if (told != ahead || again) && !changed && scanner.may_insert() {
            let old = index as isize + 1 - ahead;
            result.extend_from_slice(format!("#line {old}\n").as_bytes());
            told = ahead;
        }
        result.extend_from_slice(line);
        scanner.line(line);
    }
    Some(result)
}

/// What the text read so far leaves open.
#[derive(Default)]
struct Scanner {
    comment: bool,
    continued: bool,
    directive: bool,
    depth: usize,
    after_condition: bool,
}

impl Scanner {
    fn may_insert(&self) -> bool {
        !self.comment && !self.continued && self.depth == 0
    }

    fn line(&mut self, line: &[u8]) {
        let body = line.strip_suffix(b"\n").unwrap_or(line);
        let trimmed = body.trim_ascii_start();
        if !self.continued {
            self.directive = !self.comment && trimmed.starts_with(b"#");
        }
        let word = trimmed.strip_prefix(b"#").map(<[u8]>::trim_ascii_start).unwrap_or_default();
        self.after_condition = self.directive
            && !self.continued
            && [b"endif".as_slice(), b"else", b"elif"].iter().any(|name| word.starts_with(name));
        if !self.comment && body.starts_with(b"}") {
            // The end of a function; parentheses of both arms of a condition may have been counted.
            self.depth = 0;
        }
        self.scan(body);
        self.continued = body.ends_with(b"\\");
    }

    fn scan(&mut self, body: &[u8]) {
        let (mut index, mut quote) = (0, None);
        while index < body.len() {
            let (byte, next) = (body[index], body.get(index + 1).copied());
            index += 1;
            if self.comment {
                if byte == b'*' && next == Some(b'/') {
                    self.comment = false;
                    index += 1;
                }
                continue;
            }
            match (quote, byte) {
                (Some(_), b'\\') => index += 1,
                (Some(open), _) if open == byte => quote = None,
                (Some(_), _) => {}
                (None, b'"' | b'\'') => quote = Some(byte),
                (None, b'/') if next == Some(b'/') => return,
                (None, b'/') if next == Some(b'*') => {
                    self.comment = true;
                    index += 1;
                }
                (None, b'(') if !self.directive => self.depth += 1,
                (None, b')') if !self.directive => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diff_analyzer::source_diff;

    fn kept(old: &str, new: &str) -> String {
        let tree = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(tree.path().join("f.c"), old).expect("written");
        let mut diff = similar::TextDiff::from_lines(old, new).unified_diff().header("a/f.c", "b/f.c").to_string();
        diff.push('\n');
        let changes = source_diff::read(diff.as_bytes(), tree.path()).expect("a diff that applies");
        keep_numbers(&changes[0]).map(|text| String::from_utf8(text).expect("text")).unwrap_or_default()
    }

    #[test]
    fn later_lines_keep_their_numbers() {
        assert_eq!(
            kept("int a;\nint b;\nint c;\n", "int a;\nint x;\nint b;\nint c;\n"),
            "int a;\nint x;\n#line 2\nint b;\nint c;\n"
        );
        assert_eq!(kept("int a;\nint b;\nint c;\n", "int a;\nint c;\n"), "int a;\n#line 3\nint c;\n");
        assert_eq!(kept("int a;\nint b;\n", "int a;\nint d;\n"), "");
    }

    #[test]
    fn no_directive_where_it_would_break_something() {
        let old = "#define A 1 + \\\n\t2 + \\\n\t3\nint a;\n";
        let new = "#define A 1 + \\\n\t5 + \\\n\t2 + \\\n\t3\nint a;\n";
        assert_eq!(kept(old, new), "#define A 1 + \\\n\t5 + \\\n\t2 + \\\n\t3\n#line 4\nint a;\n");
        let old = "/* a\n * b\n */\nint a;\n";
        let new = "/* a\n * x\n * b\n */\nint a;\n";
        assert_eq!(kept(old, new), "/* a\n * x\n * b\n */\n#line 4\nint a;\n");
        let old = "f(a,\n  b,\n  c);\nint a;\n";
        let new = "f(a,\n  \")\",\n  b,\n  c);\nint a;\n";
        assert_eq!(kept(old, new), "f(a,\n  \")\",\n  b,\n  c);\n#line 4\nint a;\n");
    }

    #[test]
    fn parts_that_are_not_compiled_do_not_matter() {
        let old = "#ifdef X\nint a;\nint b;\n#endif\nint c;\n";
        let new = "#ifdef X\nint a;\nint x;\nint b;\n#endif\nint c;\n";
        assert_eq!(kept(old, new), "#ifdef X\nint a;\nint x;\n#line 3\nint b;\n#endif\n#line 5\nint c;\n");
    }
}
