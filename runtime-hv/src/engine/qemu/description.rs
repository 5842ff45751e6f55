//! Which registers the stub shows, and where each lies among all.
//!
//! Comes in: the stub's target description (GDB manual, appendix "Target Descriptions"). Decided: nothing; sizes and order are
//! the stub's. Goes out: [`Layout`], by name. A version of QEMU that shows more registers has them saved and put back, too.

use super::gdb::unexpected;
use crate::engine::EngineError;

/// A register is no longer than this (512 bits), and there are no more of them.
const BITS_LIMIT: usize = 512;
const COUNT_LIMIT: usize = 1024;

/// One register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Register {
    pub(super) name: String,
    /// The stub's number of it.
    pub(super) number: usize,
    /// Where it begins among all.
    at: usize,
    len: usize,
}

impl Register {
    /// Its bytes among all, as long as there are that many.
    pub(super) fn of<'a>(&self, all: &'a [u8]) -> Result<&'a [u8], EngineError> {
        all.get(self.at..self.at + self.len)
            .ok_or_else(|| unexpected("all registers of the description", self.name.as_bytes()))
    }

    /// Its value among all; only the low 64 bits of a longer one.
    pub(super) fn value(&self, all: &[u8]) -> Result<u64, EngineError> {
        let low = self.of(all)?.iter().take(8).rev();
        Ok(low.fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// A value in its form.
    pub(super) fn bytes(&self, value: u64) -> Vec<u8> {
        let mut bytes = value.to_le_bytes().to_vec();
        bytes.resize(self.len, 0);
        bytes
    }
}

/// All registers in the stub's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout(Vec<Register>);

impl Layout {
    /// Names of the documents that a description refers to.
    pub(super) fn documents(target: &str) -> impl Iterator<Item = &str> {
        elements(target, "xi:include").filter_map(|element| attribute(element, "href"))
    }

    /// Reads the documents of a description.
    pub(super) fn parse<'a>(documents: impl IntoIterator<Item = &'a str>) -> Result<Layout, EngineError> {
        let mut registers: Vec<Register> = Vec::new();
        let (mut number, mut at) = (0, 0);
        let documents: Vec<String> = documents.into_iter().map(without_comments).collect();
        for element in documents.iter().flat_map(|document| elements(document, "reg")) {
            let wrong = || unexpected("a register of whole bytes", element.as_bytes());
            let field = |name| attribute(element, name);
            let bits: usize = field("bitsize").and_then(|bits| bits.parse().ok()).ok_or_else(wrong)?;
            // Numbers go on from the register before unless told.
            number = field("regnum").map_or(Some(number), |told| told.parse().ok()).ok_or_else(wrong)?;
            let in_order = registers.last().is_none_or(|last| last.number < number) && number < COUNT_LIMIT;
            if bits == 0 || !bits.is_multiple_of(8) || bits > BITS_LIMIT || !in_order {
                return Err(wrong());
            }
            let name = field("name").ok_or_else(wrong)?.to_owned();
            registers.push(Register { name, number, at, len: bits / 8 });
            number += 1;
            at += bits / 8;
        }
        Ok(Layout(registers))
    }

    /// A register by its name.
    pub(super) fn find(&self, name: &'static str) -> Result<&Register, EngineError> {
        self.0
            .iter()
            .find(|one| one.name == name)
            .ok_or_else(|| unexpected("a description with this register", name.as_bytes()))
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Register] {
        &self.0
    }

    /// Length of all together.
    pub(super) fn length(&self) -> usize {
        self.0.last().map_or(0, |last| last.at + last.len)
    }
}

/// QEMU's own descriptions have registers in comments.
fn without_comments(document: &str) -> String {
    let mut parts = document.split("<!--");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once("-->").map_or("", |(_, behind)| behind))
}

/// What stands inside the tags of a name.
fn elements<'a>(document: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    document.split('<').skip(1).filter_map(move |tag| {
        let inside = tag.split_once('>')?.0.strip_prefix(name)?;
        inside.starts_with(char::is_whitespace).then_some(inside)
    })
}

fn attribute<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    element.split_whitespace().find_map(|word| {
        let value = word.strip_prefix(name)?.strip_prefix('=')?.trim_end_matches('/');
        value.strip_prefix('"')?.strip_suffix('"')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORE: &str = r#"<?xml version="1.0"?><!-- <registers> --><feature name="org.gnu.gdb.i386.core">
        <flags id="eflags" size="4"><field name="" start="22" end="31"/></flags>
        <reg name="rax" bitsize="64" type="int64" regnum="0"/>
        <reg name="cs" bitsize="32" type="int32"/>
        <!-- not yet <reg name="ss_base" bitsize="64"/> <reg name="ds_base" bitsize="64"/-->
        <reg name="st0" bitsize="80" type="i387_ext" regnum="7"/></feature>"#;

    #[test]
    fn numbers_and_places_follow_from_the_order() {
        let layout = Layout::parse([CORE, r#"<reg name="more" bitsize="8"/>"#]).expect("a description");
        let found: Vec<_> = layout.all().iter().map(|one| (one.name.as_str(), one.number, one.at, one.len)).collect();
        assert_eq!(found, [("rax", 0, 0, 8), ("cs", 1, 8, 4), ("st0", 7, 12, 10), ("more", 8, 22, 1)]);
        assert_eq!(layout.length(), 23);
        let all: Vec<u8> = (1..=23).collect();
        let cs = layout.find("cs").expect("there");
        assert_eq!((cs.value(&all).expect("whole"), cs.bytes(0x10)), (0x0c0b_0a09, vec![0x10, 0, 0, 0]));
        assert_eq!(layout.find("st0").expect("there").bytes(1).len(), 10);
        assert!(cs.of(&all[..11]).is_err() && layout.find("rip").is_err());
    }

    #[test]
    fn documents_are_named_by_their_includes() {
        let target = r#"<target><architecture>i386:x86-64</architecture><xi:include href="i386-64bit.xml"/></target>"#;
        assert_eq!(Layout::documents(target).collect::<Vec<_>>(), ["i386-64bit.xml"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in
            ["bitsize=\"7\"", "bitsize=\"0\"", "bitsize=\"4096\"", "bits=\"64\"", "bitsize=\"64\" regnum=\"9999\""]
        {
            assert!(Layout::parse([format!("<reg name=\"rax\" {wrong}/>").as_str()]).is_err(), "{wrong}");
        }
        assert!(Layout::parse(["<reg bitsize=\"64\"/>"]).is_err());
        assert!(Layout::parse([CORE, CORE]).is_err(), "numbers twice");
        for end in 0..CORE.len() {
            let _ = Layout::parse([CORE.get(..end).unwrap_or_default()]);
        }
    }
}
