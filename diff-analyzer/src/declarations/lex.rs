//! C source as tokens.
//!
//! Comes in: the text of a source file, or what the preprocessor made of it. Decided: where comments, literals and
//! directives begin and end (C11, sections 5.1.1.2, 6.4 and 6.10). Goes out: [`Token`]s; a directive is one token.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// An identifier or keyword.
    Word,
    /// A number.
    Number,
    /// A string or character.
    Literal,
    /// One character of an operator or of punctuation.
    Punct,
    /// A whole directive with its continued lines.
    Directive,
}

/// A token of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'t> {
    /// What it is.
    pub kind: TokenKind,
    /// Its bytes.
    pub text: &'t [u8],
    /// Whether it stands in the first column of a line.
    pub first_column: bool,
}

impl Token<'_> {
    /// Whether it is this operator character.
    pub fn is(&self, punct: u8) -> bool {
        self.kind == TokenKind::Punct && self.text[0] == punct
    }
}

/// Whether a byte may begin an identifier.
pub fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte == b'$' || byte >= 0x80
}

/// Whether a byte may go on an identifier.
pub fn in_word(byte: u8) -> bool {
    starts_word(byte) || byte.is_ascii_digit()
}

/// All tokens of a text.
pub fn tokens(text: &[u8]) -> Vec<Token<'_>> {
    let mut tokens = Vec::with_capacity(text.len() / 5);
    let (mut at, mut line_start) = (0, true);
    while at < text.len() {
        let byte = text[at];
        match byte {
            b'\n' => (at, line_start) = (at + 1, true),
            _ if byte.is_ascii_whitespace() => at += 1,
            b'\\' if continues(text, at).is_some() => at = continues(text, at).unwrap_or(at + 1),
            b'/' if comment(text, at).is_some() => at = comment(text, at).unwrap_or(at + 1),
            _ => {
                let (kind, end) = match byte {
                    b'#' if line_start => (TokenKind::Directive, directive_end(text, at)),
                    b'"' | b'\'' => (TokenKind::Literal, literal_end(text, at)),
                    _ if starts_word(byte) => (TokenKind::Word, word_end(text, at)),
                    _ if byte.is_ascii_digit() => (TokenKind::Number, number_end(text, at)),
                    _ => (TokenKind::Punct, at + 1),
                };
                let first_column = at == 0 || text[at - 1] == b'\n';
                tokens.push(Token { kind, text: &text[at..end], first_column });
                (at, line_start) = (end, false);
            }
        }
    }
    tokens
}

/// The identifiers of a piece of text, without those in comments and literals.
pub fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            let byte = text[at];
            if starts_word(byte) {
                let start = at;
                at = word_end(text, at);
                return Some(&text[start..at]);
            }
            at = match byte {
                b'/' => comment(text, at).unwrap_or(at + 1),
                b'"' | b'\'' => literal_end(text, at),
                _ if byte.is_ascii_digit() => number_end(text, at),
                _ => at + 1,
            };
        }
        None
    })
}

/// Name and rest of a directive: `#  define A B` is `define` and ` A B`.
pub fn directive(text: &[u8]) -> (&[u8], &[u8]) {
    let mut at = 1;
    loop {
        match text.get(at) {
            Some(b'/') if comment(text, at).is_some() => at = comment(text, at).unwrap_or(at + 1),
            Some(b'\\') if continues(text, at).is_some() => at = continues(text, at).unwrap_or(at + 1),
            Some(byte) if byte.is_ascii_whitespace() => at += 1,
            Some(_) => break,
            None => return (b"", b""),
        }
    }
    text[at..].split_at(word_end(text, at) - at)
}

/// The end of a backslash and the line end behind it.
fn continues(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at + 1..)? {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    }
}

/// The end of the comment that begins here; the end of its line stays.
fn comment(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at + 1)? {
        b'*' => Some(text[at + 2..].windows(2).position(|pair| pair == b"*/").map_or(text.len(), |end| at + 4 + end)),
        b'/' => {
            let mut end = at;
            while end < text.len() && text[end] != b'\n' {
                end = if text[end] == b'\\' { continues(text, end).unwrap_or(end + 1) } else { end + 1 };
            }
            Some(end)
        }
        _ => None,
    }
}

/// A literal ends with its quote, or with its line where the quote is an apostrophe of a text that is no C.
fn literal_end(text: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < text.len() {
        match text[end] {
            b'\\' => end += 2,
            b'\n' => return end,
            byte if byte == text[at] => return end + 1,
            _ => end += 1,
        }
    }
    text.len()
}

fn word_end(text: &[u8], at: usize) -> usize {
    text[at..].iter().position(|&byte| !in_word(byte)).map_or(text.len(), |len| at + len)
}

/// The end of a preprocessing number (C11, section 6.4.8).
fn number_end(text: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < text.len() {
        let sign = matches!(text[end], b'+' | b'-') && matches!(text[end - 1], b'e' | b'E' | b'p' | b'P');
        if !(in_word(text[end]) || text[end] == b'.' || sign) {
            break;
        }
        end += 1;
    }
    end
}

/// The end of the directive that begins here: of its logical line.
pub fn directive_end(text: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < text.len() {
        end = match text[end] {
            b'\n' => return end,
            b'\\' => continues(text, end).unwrap_or(end + 1),
            b'/' => comment(text, end).unwrap_or(end + 1),
            b'"' | b'\'' => literal_end(text, end),
            _ => end + 1,
        };
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<&str> {
        tokens(text.as_bytes()).iter().map(|token| std::str::from_utf8(token.text).expect("text")).collect()
    }

    #[test]
    fn comments_literals_and_directives() {
        assert_eq!(
            shown("a/* b */ += 0x1e+2f \"c\\\"/*\" 'd'; // e\nf"),
            ["a", "+", "=", "0x1e+2f", "\"c\\\"/*\"", "'d'", ";", "f"]
        );
        assert_eq!(shown("#define A /* x\n y */ b \\\n c\nd # e"), ["#define A /* x\n y */ b \\\n c", "d", "#", "e"]);
        assert_eq!(shown(" /* c */ #error don't\nint a;"), ["#error don't", "int", "a", ";"]);
    }

    #[test]
    fn words_are_those_of_the_code() {
        let found: Vec<_> = words(b"a /* b */ 'c' \"d\" 0xe f // g\nh").collect();
        assert_eq!(found, [b"a", b"f", b"h"]);
        let (name, rest) = directive(b"# /* x */ define A b");
        assert_eq!((name, rest), (b"define".as_slice(), b" A b".as_slice()));
    }

    #[test]
    fn nothing_panics_on_open_ends() {
        for text in ["/*", "\"", "'\\", "#", "# ", "\\", "//\\", "/", "0e", "#define A \\", "#if /*"] {
            let _ = shown(text);
            let _ = words(text.as_bytes()).count();
            let _ = directive(text.as_bytes());
        }
        let _ = directive(b"#");
    }
}
