//! The contents of a datum that moves, made from its other version.
//!
//! Comes in: the steps that the bundle gives, and the bytes of both versions. Decided: nothing but whether a number fits where it
//! becomes narrower. Goes out: the bytes of the version that is made; bits that no step names stay as they were. Pure functions.

use lpk_format::{Step, StepKind};

/// A number does not fit into the version that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{value:#x}, {from_size} bits at bit {from}, does not fit into {to_size} bits")]
pub struct Overflow {
    /// The number.
    pub value: u64,
    /// Where it is, in bits.
    pub from: u32,
    /// How wide it is, in bits.
    pub from_size: u32,
    /// How wide it should become.
    pub to_size: u32,
}

/// Does all steps. Places and sizes lie inside of `from` and `to`, as reading a bundle has checked; what does not is left out.
///
/// # Errors
/// [`Overflow`]; part of `to` has been written then.
pub fn transfer(steps: &[Step], from: &[u8], to: &mut [u8]) -> Result<(), Overflow> {
    for step in steps {
        match step.how {
            StepKind::Copy => copy(step, from, to),
            StepKind::Constant(value) => set(to, step.to, step.to_size, value),
            how => set(to, step.to, step.to_size, converted(step, how, get(from, step.from, step.from_size))?),
        }
    }
    Ok(())
}

fn copy(step: &Step, from: &[u8], to: &mut [u8]) {
    if [step.from, step.to, step.to_size].iter().all(|bits| bits.is_multiple_of(8)) {
        let range = |start: u32| start as usize / 8..(start + step.to_size) as usize / 8;
        if let (Some(source), Some(target)) = (from.get(range(step.from)), to.get_mut(range(step.to))) {
            target.copy_from_slice(source);
        }
        return;
    }
    let mut done = 0;
    while done < step.to_size {
        let size = (step.to_size - done).min(64);
        set(to, step.to + done, size, get(from, step.from + done, size));
        done += size;
    }
}

/// A number of another width, as bits.
fn converted(step: &Step, how: StepKind, value: u64) -> Result<u64, Overflow> {
    let Step { from, from_size, to_size, .. } = *step;
    let signed = sign_extended(value, from_size);
    let fits = match how {
        StepKind::NarrowUnsigned => value == value & mask(to_size),
        StepKind::NarrowSigned => signed == sign_extended(signed & mask(to_size), to_size),
        _ => true,
    };
    let is_signed = matches!(how, StepKind::SignExtend | StepKind::NarrowSigned);
    if fits { Ok(if is_signed { signed } else { value }) } else { Err(Overflow { value, from, from_size, to_size }) }
}

fn sign_extended(value: u64, size: u32) -> u64 {
    let shift = 64_u32.saturating_sub(size).min(63);
    ((value << shift).cast_signed() >> shift).cast_unsigned()
}

fn mask(size: u32) -> u64 {
    if size >= 64 { u64::MAX } else { (1 << size) - 1 }
}

/// At most 64 bits; bit 0 of the bytes is the lowest of the first.
fn get(bytes: &[u8], at: u32, size: u32) -> u64 {
    (0..size.min(64)).fold(0, |value, bit| {
        let place = at + bit;
        let byte = bytes.get(place as usize / 8).copied().unwrap_or(0);
        value | u64::from(byte >> (place % 8) & 1) << bit
    })
}

fn set(bytes: &mut [u8], at: u32, size: u32, value: u64) {
    for bit in 0..size.min(64) {
        let place = at + bit;
        if let Some(byte) = bytes.get_mut(place as usize / 8) {
            *byte = *byte & !(1 << (place % 8)) | ((value >> bit & 1) as u8) << (place % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(from: (u32, u32), to: (u32, u32), how: StepKind) -> Step {
        Step { from: from.0, from_size: from.1, to: to.0, to_size: to.1, how }
    }

    #[test]
    fn each_kind_carries_what_it_says_and_nothing_else() {
        let from = [0x01, 0x82, 0x03, 0xff, 0xff, 0xff, 0xff, 0x7f];
        for (name, step, expected) in [
            ("bytes", step((8, 16), (0, 16), StepKind::Copy), [0x82, 0x03, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa]),
            ("bits", step((1, 3), (4, 3), StepKind::Copy), [0x8a, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa]),
            ("many bits", step((4, 60), (0, 60), StepKind::Copy), [0x20, 0x38, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xa7]),
            ("zeroes", step((8, 8), (0, 32), StepKind::ZeroExtend), [0x82, 0, 0, 0, 0xaa, 0xaa, 0xaa, 0xaa]),
            ("sign", step((8, 8), (0, 32), StepKind::SignExtend), [0x82, 0xff, 0xff, 0xff, 0xaa, 0xaa, 0xaa, 0xaa]),
            ("plus", step((0, 8), (0, 16), StepKind::SignExtend), [0x01, 0, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa]),
            (
                "narrow",
                step((0, 16), (0, 16), StepKind::NarrowUnsigned),
                [0x01, 0x82, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa],
            ),
            ("minus", step((24, 32), (0, 8), StepKind::NarrowSigned), [0xff, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa]),
            (
                "constant",
                step((0, 1), (6, 4), StepKind::Constant(0b1001)),
                [0x6a, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa],
            ),
        ] {
            let mut to = [0xaa_u8; 8];
            transfer(&[step], &from, &mut to).expect("fits");
            assert_eq!(to, expected, "{name}: {to:02x?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let from = 0x1_8000_u64.to_le_bytes();
        let narrow = |from_size, to_size, how| {
            let mut to = [0; 8];
            transfer(&[step((0, from_size), (0, to_size), how)], &from, &mut to).map(|()| u64::from_le_bytes(to))
        };
        let overflow = Err(Overflow { value: 0x1_8000, from: 0, from_size: 64, to_size: 16 });
        assert_eq!(narrow(64, 16, StepKind::NarrowUnsigned), overflow);
        assert_eq!(narrow(64, 32, StepKind::NarrowUnsigned), Ok(0x1_8000));
        assert_eq!(narrow(64, 17, StepKind::NarrowSigned).map_err(|error| error.to_size), Err(17));
        assert_eq!(narrow(64, 18, StepKind::NarrowSigned), Ok(0x1_8000));
    }
}
