//! What `pahole -F dwarf` prints of an image: an independent reader of the same layouts.
//!
//! Comes in: its text. Decided: what stands in a line. Goes out: [`Dump`]: size and members of every struct and union.
//! Also [`of_report`]: the same, out of the JSON of `lucos-build layout`, so that both can be compared.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Command;

/// A member that is no anonymous struct or union itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Field {
    /// Path as C writes it.
    pub path: String,
    /// Offset in bits from the start of the outermost type.
    pub bit_offset: u64,
    /// Size in bytes; of a bit-field in bits.
    pub size: u64,
    /// Whether it is a bit-field.
    pub bit_field: bool,
}

/// A struct or union.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Layout {
    /// Size in bytes; pahole does not print that of a union.
    pub size: Option<u64>,
    /// Members in order.
    pub fields: Vec<Field>,
}

/// Layouts by name (`struct list_head`); a name may have several.
pub type Dump = BTreeMap<String, Vec<Layout>>;

/// Runs pahole on an image.
///
/// # Errors
/// When it is not there or fails.
pub fn dump(image: &Path) -> io::Result<Dump> {
    let output = Command::new("pahole").args(["-F", "dwarf"]).arg(image).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// An anonymous struct, union or enum whose end has not come yet.
struct Open {
    is_enum: bool,
    fields: Vec<Field>,
}

/// Reads what pahole printed.
pub fn parse(text: &str) -> Dump {
    let mut dump = Dump::new();
    let mut name = String::new();
    let mut open: Vec<Open> = Vec::new();
    let mut size = None;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(rest) = trimmed.strip_prefix("/* size: ") {
            size = number(rest);
        } else if trimmed.ends_with('{') {
            if open.is_empty() {
                name = trimmed.trim_end_matches('{').trim().to_owned();
            }
            let is_enum = trimmed.split_whitespace().any(|word| word == "enum");
            open.push(Open { is_enum, fields: Vec::new() });
        } else if line.starts_with('}') {
            let fields = open.pop().map(|open| open.fields).unwrap_or_default();
            dump.entry(std::mem::take(&mut name)).or_default().push(Layout { size, fields });
            (size, open) = (None, Vec::new());
        } else if let Some((declaration, place)) = member(trimmed) {
            let mut fields = vec![field(&declaration, &place)];
            if trimmed.starts_with('}') {
                let inner = open.pop();
                let is_other = declaration.contains(['[', '*']);
                if let Some(inner) = inner.filter(|inner| !inner.is_enum && !inner.fields.is_empty() && !is_other) {
                    let prefix = fields[0].path.clone();
                    let path = |path: String| if prefix.is_empty() { path } else { format!("{prefix}.{path}") };
                    fields = inner.fields.into_iter().map(|field| Field { path: path(field.path), ..field }).collect();
                }
            }
            if let Some(parent) = open.last_mut() {
                parent.fields.extend(fields);
            }
        }
    }
    dump
}

/// The declaration of a member and its place, out of a line such as `int a:3; /*  8: 0  4 */`.
fn member(line: &str) -> Option<(String, [u64; 3])> {
    let (declaration, comment) = line.rsplit_once("/*")?;
    let declaration = declaration.trim().strip_suffix(';')?.trim_start_matches('}');
    let comment = comment.strip_suffix("*/")?.replace(':', " : ");
    let words: Vec<&str> = comment.split_whitespace().collect();
    let (offset, bit, size) = match words.as_slice() {
        [offset, size] => (offset.parse().ok()?, 0, size.parse().ok()?),
        [offset, ":", bit, size] => (offset.parse().ok()?, bit.parse().ok()?, size.parse().ok()?),
        _ => return None,
    };
    Some((without_attributes(declaration), [offset, bit, size]))
}

/// A declaration without `__attribute__((…))`, wherever these stand.
fn without_attributes(declaration: &str) -> String {
    let mut parts = declaration.split("__attribute__((");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // `__aligned__(64)))` or `__packed__))`
        text.push_str(part.split_once("))").map_or("", |(_, rest)| rest.trim_start_matches(')')));
    }
    text.trim().to_owned()
}

fn field(declaration: &str, &[offset, bit, size]: &[u64; 3]) -> Field {
    let mut name = declaration;
    let mut width = None;
    if let Some(at) = declaration.find("(*") {
        name = declaration[at..].trim_start_matches(['(', '*', ' ']);
        name = name.trim_start_matches("const ");
        name = name.split([')', '[', '(']).next().unwrap_or_default();
    } else {
        name = name.split('[').next().unwrap_or_default();
        if let Some((before, bits)) = name.split_once(':') {
            (name, width) = (before, bits.trim().parse::<u64>().ok());
        }
        name = name.trim();
        name = name.rsplit([' ', '*']).next().unwrap_or_default();
    }
    Field {
        path: name.trim().to_owned(),
        bit_offset: offset.wrapping_mul(8).wrapping_add(bit),
        size: width.unwrap_or(size),
        bit_field: width.is_some(),
    }
}

fn number(text: &str) -> Option<u64> {
    text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The same, out of `lucos-build layout IMAGE --json`.
pub fn of_report(report: &Value) -> Dump {
    let mut dump = Dump::new();
    for layout in report["layouts"].as_array().into_iter().flatten() {
        let name = layout["name"].as_str().unwrap_or_default();
        // pahole leaves out types that are local to a function, and what only a typedef names.
        let is_local = name.ends_with("()");
        if is_local || !(name.starts_with("struct ") || name.starts_with("union ")) {
            continue;
        }
        let mut fields = Vec::new();
        leaves(&layout["members"], "", &mut fields);
        let size = layout["size"].as_u64();
        dump.entry(name.to_owned()).or_default().push(Layout { size, fields });
    }
    dump
}

fn leaves(members: &Value, prefix: &str, fields: &mut Vec<Field>) {
    for member in members.as_array().into_iter().flatten() {
        let name = member["name"].as_str().unwrap_or_default();
        let inner = member["members"].as_array().is_some_and(|members| !members.is_empty());
        if inner {
            let prefix = if name.is_empty() { prefix.to_owned() } else { format!("{prefix}{name}.") };
            leaves(&member["members"], &prefix, fields);
            continue;
        }
        let bit_field = member["bit_field"].as_bool().unwrap_or_default();
        let bits = member["bit_size"].as_u64().unwrap_or(u64::MAX);
        let size = if bit_field { bits } else { bits / 8 };
        let bit_offset = member["bit_offset"].as_u64().unwrap_or(u64::MAX);
        fields.push(Field { path: format!("{prefix}{name}"), bit_offset, size, bit_field });
    }
}

#[cfg(test)]
mod tests {
    use super::{Field, parse};

    #[test]
    fn every_kind_of_line_is_read() {
        let text = "struct a {\n\tstruct b *                 next;                 /*     0     8 */\n\
            \tvoid                       (*func)(struct a *, int (*)(int)); /*     8     8 */\n\
            \tunsigned int               low:3;                /*    16: 0  4 */\n\n\
            \t/* XXX 4 bytes hole, try to pack */\n\n\
            \tunion {\n\t\tint                v;                    /*    24     4 */\n\
            \t\tstruct {\n\t\t\tchar       x[3];                 /*    24     3 */\n\t\t} s;     /*    24     3 */\n\
            \t};                                               /*    24     4 */\n\
            \tenum {\n\t\tA = 0,\n\t} state;                                         /*    28     4 */\n\
            \t/* --- cacheline 1 boundary (64 bytes) --- */\n\
            \tu64                        tail __attribute__((__aligned__(64))); /*    64     8 */\n\n\
            \t/* size: 128, cachelines: 2, members: 5 */\n} __attribute__((__aligned__(64)));\n";
        let dump = parse(text);
        let layout = &dump["struct a"][0];
        assert_eq!(layout.size, Some(128));
        let field =
            |path: &str, bit_offset, size, bit_field| Field { path: path.to_owned(), bit_offset, size, bit_field };
        let expected = [
            field("next", 0, 8, false),
            field("func", 64, 8, false),
            field("low", 128, 3, true),
            field("v", 192, 4, false),
            field("s.x", 192, 3, false),
            field("state", 224, 4, false),
            field("tail", 512, 8, false),
        ];
        assert_eq!(layout.fields, expected);
    }
}
