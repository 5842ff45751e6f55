//! Registers out of the text of `info registers`.
//!
//! Comes in: the text. Decided: nothing; a processor without all of the registers that are wanted is an error, not a zero.
//! Goes out: one [`Registers`] for each processor. The text has two forms: a processor in 64-bit code has RIP, RSP and
//! wide segment bases, one that runs a 32-bit program has EIP, ESP and narrow ones (QEMU target/i386/cpu-dump.c,
//! `x86_cpu_dump_state`).

use crate::engine::{EngineError, Registers};

/// Reads the text.
pub(super) fn parse(text: &str) -> Result<Vec<Registers>, EngineError> {
    let mut all = Vec::new();
    for (expected, section) in text.split("CPU#").skip(1).enumerate() {
        let (number, body) = section.split_once(char::is_whitespace).unwrap_or((section, ""));
        if number.parse() != Ok(expected) {
            return Err(unexpected("the processors in order", &format!("CPU#{number}")));
        }
        all.push(one(body)?);
    }
    if all.is_empty() {
        return Err(unexpected("a section `CPU#0`", text));
    }
    Ok(all)
}

/// What decides whether a processor can be given other registers for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// Its registers.
    pub(super) registers: Registers,
    /// It waits for an interrupt (`HLT`).
    pub(super) halted: bool,
    /// The next instruction is not interrupted: the one before was `sti`, or wrote SS (`II`; Intel SDM vol. 3, 6.8.3).
    pub(super) in_shadow: bool,
    /// It is in system management mode.
    pub(super) in_smm: bool,
    /// It is in long mode (EFER.LMA; Intel SDM vol. 3, 2.2.1).
    pub(super) in_long_mode: bool,
    /// It runs 64-bit code.
    pub(super) in_64_bit_code: bool,
}

/// Reads the text about one processor.
pub(super) fn state(text: &str) -> Result<State, EngineError> {
    const LONG_MODE_ACTIVE: u64 = 1 << 10;
    let flag = |name, expected| value(text, &[name]).map(|bit| bit != 0).ok_or_else(|| unexpected(expected, text));
    Ok(State {
        registers: one(text)?,
        halted: flag("HLT", "a value for HLT")?,
        in_shadow: flag("II", "a value for II")?,
        in_smm: flag("SMM", "a value for SMM")?,
        // Without the register there is no long mode.
        in_long_mode: value(text, &["EFER"]).is_some_and(|efer| efer & LONG_MODE_ACTIVE != 0),
        in_64_bit_code: value(text, &["RIP"]).is_some(),
    })
}

/// Reads the priority of what a processor does out of the text of `info lapic` (QEMU target/i386/cpu-apic.c,
/// `x86_cpu_dump_local_apic_state`): the upper four bits are those of the interrupt that it serves, and only interrupts with
/// higher ones are let in (Intel SDM vol. 3, 11.8.3.1).
pub(super) fn priority(text: &str) -> Result<u8, EngineError> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let value = words.windows(2).find(|pair| pair[0] == "PPR").and_then(|pair| pair[1].strip_prefix("0x"));
    value
        .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        .ok_or_else(|| unexpected("a value for PPR of the local APIC", text))
}

fn one(body: &str) -> Result<Registers, EngineError> {
    let cpl = value(body, &["CPL"]).ok_or_else(|| unexpected("a value for CPL", body))?;
    if cpl > 3 {
        return Err(unexpected("a privilege level of 0 to 3", &format!("CPL={cpl:x}")));
    }
    // The form with narrow registers has no others, and none of these is asked for there.
    let is_wide = value(body, &["RIP"]).is_some();
    // Short names are padded: `R8 =`.
    let tight = body.replace(" =", "=");
    let general = |name| match value(&tight, &[name]) {
        None if is_wide => Err(unexpected("all general registers", body)),
        found => Ok(found.unwrap_or(0)),
    };
    Ok(Registers {
        rbp: general("RBP")?,
        rax: general("RAX")?,
        rbx: general("RBX")?,
        rcx: general("RCX")?,
        rdx: general("RDX")?,
        rsi: general("RSI")?,
        rdi: general("RDI")?,
        r8: general("R8")?,
        r9: general("R9")?,
        r10: general("R10")?,
        r11: general("R11")?,
        r12: general("R12")?,
        r13: general("R13")?,
        r14: general("R14")?,
        r15: general("R15")?,
        rip: value(body, &["RIP", "EIP"]).ok_or_else(|| unexpected("a value for RIP", body))?,
        rsp: value(body, &["RSP", "ESP"]).ok_or_else(|| unexpected("a value for RSP", body))?,
        rflags: value(body, &["RFL", "EFL"]).ok_or_else(|| unexpected("a value for RFL", body))?,
        cpl: cpl as u8,
        cr3: value(body, &["CR3"]).ok_or_else(|| unexpected("a value for CR3", body))?,
        cr4: value(body, &["CR4"]).ok_or_else(|| unexpected("a value for CR4", body))?,
        idt_base: row(body, "IDT", 0).ok_or_else(|| unexpected("a base for IDT", body))?,
        gs_base: row(body, "GS", 1).ok_or_else(|| unexpected("a base for GS", body))?,
    })
}

/// The value behind `NAME=` for the first of the names that stands at the beginning of a word.
fn value(body: &str, names: &[&str]) -> Option<u64> {
    body.split_whitespace().find_map(|word| {
        let (name, value) = word.split_once('=')?;
        if names.contains(&name) { u64::from_str_radix(value, 16).ok() } else { None }
    })
}

/// Field `index` of the line that begins with `NAME =` or `NAME=` (descriptor tables and segments).
fn row(body: &str, name: &str, index: usize) -> Option<u64> {
    body.lines().find_map(|line| {
        let (before, fields) = line.split_once('=')?;
        if before.trim() != name {
            return None;
        }
        u64::from_str_radix(fields.split_whitespace().nth(index)?, 16).ok()
    })
}

fn unexpected(expected: &'static str, answer: &str) -> EngineError {
    let answer = answer.trim().chars().take(120).collect();
    EngineError::Protocol { peer: "`info registers`", expected, answer }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "\r
CPU#0\r
RAX=0000000000000000 RBX=0000000007ffffff RCX=7fffffffffffffff RDX=0000000000000001\r
RSI=0000000000000a20 RDI=ffff8c52811be400 RBP=ffff8c52811be400 RSP=ffffce32c243bab0\r
R8 =0000000000000001 R9 =000000000000004c R10=ffff8c5281220040 R11=0000000000000001\r
R12=0000000000000002 R13=0000000000000003 R14=ffff8c5281220000 R15=0000000000000005\r
RIP=ffffffff9f316ce0 RFL=00000082 [--S----] CPL=0 II=0 A20=1 SMM=0 HLT=0\r
CS =0010 0000000000000000 ffffffff 00a09b00 DPL=0 CS64 [-RA]\r
FS =0000 0000000000000000 00000000 00000000\r
GS =0000 ffff8c529f400000 00000000 00000000\r
GDT=     fffffe0000001000 0000007f\r
IDT=     fffffe0000000000 00000fff\r
CR0=80050033 CR2=000000000042ee70 CR3=000000000a610000 CR4=000006b0\r
EFER=0000000000000d01\r
\r
CPU#1\r
EAX=000000b7 EBX=ffffffff ECX=00000000 EDX=00000001\r
ESI=00000000 EDI=00000000 EBP=ffbfef38 ESP=ffbfef0c\r
EIP=080494f3 EFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0\r
CS =0023 00000000 ffffffff 00cffb00 DPL=3 CS32 [-RA]\r
GS =0063 081042c0 00008fff 00d0f300 DPL=3 DS   [-WA]\r
GDT=     fffffe0000032000 0000007f\r
IDT=     fffffe0000000000 00000fff\r
CR0=80050033 CR2=00000000080bf400 CR3=000000000283a001 CR4=000006a0\r
";

    #[test]
    fn both_forms_are_read() {
        let all = parse(TWO).expect("two processors");
        assert_eq!(
            all[0],
            Registers {
                rip: 0xffff_ffff_9f31_6ce0,
                rsp: 0xffff_ce32_c243_bab0,
                rbp: 0xffff_8c52_811b_e400,
                rax: 0,
                rbx: 0x7ff_ffff,
                rcx: i64::MAX.cast_unsigned(),
                rdx: 1,
                rsi: 0xa20,
                rdi: 0xffff_8c52_811b_e400,
                r8: 1,
                r9: 0x4c,
                r10: 0xffff_8c52_8122_0040,
                r11: 1,
                r12: 2,
                r13: 3,
                r14: 0xffff_8c52_8122_0000,
                r15: 5,
                rflags: 0x82,
                cpl: 0,
                cr3: 0xa61_0000,
                cr4: 0x6b0,
                idt_base: 0xffff_fe00_0000_0000,
                gs_base: 0xffff_8c52_9f40_0000,
            }
        );
        assert_eq!((all[1].rip, all[1].rsp, all[1].cpl, all[1].gs_base), (0x804_94f3, 0xffbf_ef0c, 3, 0x810_42c0));
        assert_eq!((all[1].idt_base, all[1].cr3), (0xffff_fe00_0000_0000, 0x283_a001));
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn the_state_of_one_is_read() {
        let first = &TWO[..TWO.find("CPU#1").expect("there")];
        let all = parse(TWO).expect("two processors");
        let running = State {
            registers: all[0],
            halted: false,
            in_shadow: false,
            in_smm: false,
            in_long_mode: true,
            in_64_bit_code: true,
        };
        assert_eq!(state(first).expect("complete"), running);
        let text =
            first.replace("HLT=0", "HLT=1").replace("II=0", "II=1").replace("SMM=0", "SMM=1").replace("d01", "100");
        let other = State { halted: true, in_shadow: true, in_smm: true, in_long_mode: false, ..running };
        assert_eq!(state(&text).expect("complete"), other);
        let second = state(&TWO[TWO.find("CPU#1").expect("there")..]);
        assert!(!second.expect("complete").in_64_bit_code);
        assert!(state(&first.replace("HLT=0", "")).expect_err("unknown").to_string().contains("HLT"));
    }

    #[test]
    fn the_priority_is_read() {
        let text = "dumping local APIC state for CPU 1 \n\nISR\t 251 \nIRR\t 236 253 \n\nAPR 0x01 TPR 0x10 DFR 0x0f LDR 0x02 PPR 0xf0\n";
        assert_eq!(priority(text).expect("complete"), 0xf0);
        for text in ["", "PPR", "PPR 17", "PPR 0x100", "Device 'apic' has not been activated"] {
            assert!(priority(text).expect_err("no value").to_string().contains("PPR"), "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (name, replacement, word) in [
            ("RIP=", "XXX=", "RIP"),
            ("R13=", "XXX=", "general"),
            ("IDT=", "XXX=", "IDT"),
            ("CPL=0", "CPL=9", "privilege"),
            ("CPU#1", "CPU#7", "order"),
        ] {
            let error = parse(&TWO.replace(name, replacement)).expect_err(name).to_string();
            assert!(error.contains(word), "{name}: {error}");
        }
        assert!(parse("unknown command: 'info registers'").is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn any_cut_of_the_text_is_read_or_refused() {
        for end in 0..TWO.len() {
            let _ = parse(&TWO[..end]);
        }
    }
}
