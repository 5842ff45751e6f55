//! Kernel memory as the guest itself sees it, through `/proc/kcore`: a second opinion on what the service says.
//!
//! Comes in: a link address. Decided: the slide, from the guest's own symbol table. Goes out: the live bytes.

use super::{Guest, GuestError};

impl Guest {
    /// Live addresses of symbols, from the guest's own table, in the order asked for.
    ///
    /// # Errors
    /// [`GuestError`] when the guest does not answer or a symbol is not there exactly once.
    pub fn symbols(&mut self, names: &[&str]) -> Result<Vec<u64>, GuestError> {
        let table = self.run_ok(&format!("grep -E ' ({})$' /proc/kallsyms", names.join("|")))?;
        let find = |name: &&str| {
            let mut lines = table.lines().filter_map(|line| line.strip_suffix(name)?.split_once(' '));
            match (lines.next(), lines.next()) {
                (Some((address, _)), None) => u64::from_str_radix(address, 16).ok(),
                _ => None,
            }
        };
        let missing =
            |name: &str| std::io::Error::other(format!("the guest's symbol table has not one {name}:\n{table}"));
        names.iter().map(|name| find(name).ok_or_else(|| missing(name).into())).collect()
    }

    /// How far address randomisation moved the kernel: the guest's `_text` against the link address of it.
    ///
    /// # Errors
    /// [`GuestError`] when the guest does not answer or hides its addresses.
    pub fn slide(&mut self, link_text: u64) -> Result<u64, GuestError> {
        let live = self.symbols(&["_text"])?;
        live.first().and_then(|live| live.checked_sub(link_text)).ok_or_else(|| {
            std::io::Error::other(format!("the guest's _text is at {live:x?}, below its link address {link_text:#x}"))
                .into()
        })
    }

    /// Live bytes of the kernel at a virtual address.
    ///
    /// # Errors
    /// [`GuestError`] when the guest does not answer or the address is in no segment of `/proc/kcore`.
    pub fn kernel_bytes(&mut self, address: u64, len: usize) -> Result<Vec<u8>, GuestError> {
        let header = unhex(&self.run_ok("head -c 4096 /proc/kcore | xxd -p")?);
        let at = file_offset(&header, address).ok_or_else(|| {
            std::io::Error::other(format!("{address:#x} is in no segment of the guest's /proc/kcore"))
        })?;
        let text = self.run_ok(&format!("dd if=/proc/kcore bs=1 skip={at} count={len} 2>/dev/null | xxd -p"))?;
        let bytes = unhex(&text);
        if bytes.len() == len {
            Ok(bytes)
        } else {
            Err(std::io::Error::other(format!("/proc/kcore gave {} of {len} bytes at {address:#x}", bytes.len()))
                .into())
        }
    }
}

/// Offset in an ELF core file of a virtual address (gABI "Program Header", `PT_LOAD`).
fn file_offset(header: &[u8], address: u64) -> Option<u64> {
    let word = |at: usize| header.get(at..at + 8).and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
    let table = usize::try_from(word(0x20)?).ok()?;
    let count = u16::from_le_bytes(header.get(0x38..0x3a)?.try_into().ok()?);
    (0..usize::from(count)).find_map(|index| {
        let entry = table + index * 56;
        let (kind, offset, start, size) = (word(entry)? as u32, word(entry + 8)?, word(entry + 16)?, word(entry + 40)?);
        (kind == 1 && address >= start && address - start < size).then(|| offset + (address - start))
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|digit| Some(digit.to_digit(16)? as u8)).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
