//! What a compiler misses.
//!
//! Comes in: gcc's messages. Decided: which words of an error are names that a header might bring. Goes out:
//! [`Complaint`]s in their order.

use super::hunks::words;

/// An error of the compiler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// File that it is about, as the compiler names it.
    pub(crate) file: String,
    /// Names in the message, the most telling first.
    pub(crate) names: Vec<String>,
    /// A file that is not there.
    pub(crate) missing_file: Option<String>,
    /// Other names of the source lines that the compiler shows.
    pub(crate) line: Vec<String>,
    /// The message.
    pub(crate) text: String,
}

/// Words in messages that are no names.
const NOT_NAMES: &[&str] = &[
    "struct",
    "union",
    "enum",
    "const",
    "static",
    "inline",
    "extern",
    "unsigned",
    "signed",
    "int",
    "char",
    "long",
    "short",
    "void",
    "volatile",
    "typeof",
    "sizeof",
    "return",
    "if",
    "else",
    "for",
    "while",
    "asm",
    "attribute",
    "expression",
    "declaration",
    "aka",
    "u8",
    "u16",
    "u32",
    "u64",
    "size_t",
    "bool",
];

/// All errors of a compilation.
pub(crate) fn read(output: &str) -> Vec<Complaint> {
    let lines: Vec<&str> = output.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some((place, text)) = line.split_once(" error: ").or_else(|| line.split_once(" fatal error: ")) else {
            continue;
        };
        let file = place.trim_end_matches(" fatal").split(':').next().unwrap_or_default().to_owned();
        let missing_file = text.strip_suffix(": No such file or directory").map(|name| name.trim().to_owned());
        // gcc shows the line as ` 123 | text`, and those of the macros it came through as well.
        let about = lines[index + 1..].iter().take_while(|line| !line.contains(" error: "));
        let shown: Vec<&str> = about.filter_map(|line| Some(line.split_once(" | ")?.1)).collect();
        let is_name = |word: &&str| !NOT_NAMES.contains(word);
        let mut names: Vec<String> = Vec::new();
        for part in text.split('\'').skip(1).step_by(2).collect::<Vec<_>>().into_iter().rev() {
            for word in words(part).filter(is_name) {
                if !names.iter().any(|name| name == word) {
                    names.push(word.to_owned());
                }
            }
        }
        let line = shown.iter().flat_map(|text| words(text)).filter(is_name).map(str::to_owned).collect();
        found.push(Complaint { file, names, missing_file, line, text: text.to_owned() });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_from_errors_only() {
        let output = "\
/t/a.c: In function 'f':
/t/a.c:3:9: error: implicit declaration of function 'fresh' [-Werror=implicit-function-declaration]
    3 |         fresh(x);
      |         ^~~~~
/t/a.c:3:9: note: in expansion of macro 'guard'
    3 |         guard(y)();
/t/a.c:4:5: warning: unused variable 'y'
/t/a.c:5:6: error: 'struct sk_buff' has no member named 'new_one'
/t/a.c:6:10: fatal error: linux/new.h: No such file or directory
";
        let found = read(output);
        let names: Vec<_> = found.iter().map(|complaint| complaint.names.join(" ")).collect();
        assert_eq!(names, ["fresh", "new_one sk_buff", ""]);
        assert_eq!(found[0].line, ["fresh", "x", "guard", "y"]);
        assert_eq!(found[2].missing_file.as_deref(), Some("linux/new.h"));
        assert!(found.iter().all(|complaint| complaint.file == "/t/a.c"));
    }
}
