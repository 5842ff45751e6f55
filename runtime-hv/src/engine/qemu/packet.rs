//! Packets of the GDB remote protocol (GDB manual, appendix "Remote Protocol", "Overview").
//!
//! Comes in: payloads to send, bytes that arrive. Decided: where a packet begins and ends, whether its checksum is right,
//! what escapes and repetitions stand for. Goes out: packets to send, and what the bytes meant.

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Arrival {
    /// `+`: our packet was understood.
    Taken,
    /// `-`: our packet was damaged; it must be sent again.
    Damaged,
    /// A packet with its payload.
    Packet(Vec<u8>),
    /// A packet whose checksum is wrong or whose payload makes no sense.
    Garbled,
}

/// Puts a payload into a packet.
pub(super) fn encode(payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![b'$'];
    for &byte in payload {
        if matches!(byte, b'$' | b'#' | b'}' | b'*') {
            packet.extend([b'}', byte ^ 0x20]);
        } else {
            packet.push(byte);
        }
    }
    let sum = checksum(packet.get(1..).unwrap_or_default());
    packet.push(b'#');
    packet.extend(hex(&[sum]));
    packet
}

/// Two lower-case digits for every byte.
pub(super) fn hex(bytes: &[u8]) -> Vec<u8> {
    let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' + value - 10 };
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The bytes behind an even number of digits.
pub(super) fn bytes_of(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|value| value as u8);
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes = pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect();
    if rest.is_empty() { bytes } else { None }
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Takes bytes one by one and says when they are complete.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Between,
    Payload(Vec<u8>),
    Sum(Vec<u8>, Option<u8>),
}

/// More than QEMU ever sends (gdbstub.c, MAX_PACKET_LENGTH 4096; repetitions lengthen by at most 97 for 2 bytes).
const LONGEST: usize = 64 << 10;

impl Decoder {
    pub(super) fn feed(&mut self, byte: u8) -> Option<Arrival> {
        match (std::mem::take(&mut self.state), byte) {
            (State::Between, b'+') => Some(Arrival::Taken),
            (State::Between, b'-') => Some(Arrival::Damaged),
            // A `$` cannot stand inside a packet: the rest of the one before is lost.
            (State::Between | State::Payload(_), b'$') => {
                self.state = State::Payload(Vec::new());
                None
            }
            // Bytes between packets mean nothing.
            (State::Between, _) => None,
            (State::Payload(raw), b'#') => {
                self.state = State::Sum(raw, None);
                None
            }
            (State::Payload(mut raw), _) => {
                if raw.len() >= LONGEST {
                    return Some(Arrival::Garbled);
                }
                raw.push(byte);
                self.state = State::Payload(raw);
                None
            }
            (State::Sum(raw, None), _) => {
                self.state = State::Sum(raw, Some(byte));
                None
            }
            (State::Sum(raw, Some(high)), low) => {
                let told =
                    (high as char).to_digit(16).zip((low as char).to_digit(16)).map(|(high, low)| high << 4 | low);
                let right = told == Some(u32::from(checksum(&raw)));
                Some(if right { expand(&raw).map_or(Arrival::Garbled, Arrival::Packet) } else { Arrival::Garbled })
            }
        }
    }
}

/// Resolves `}` escapes and `*` repetitions.
fn expand(raw: &[u8]) -> Option<Vec<u8>> {
    let mut payload = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'}' => payload.push(bytes.next()? ^ 0x20),
            b'*' => {
                let again = usize::from(bytes.next()?.checked_sub(29)?);
                let last = *payload.last()?;
                payload.extend(std::iter::repeat_n(last, again));
            }
            _ => payload.push(byte),
        }
    }
    Some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Vec<Arrival> {
        let mut decoder = Decoder::default();
        bytes.iter().filter_map(|byte| decoder.feed(*byte)).collect()
    }

    #[test]
    fn a_known_packet_has_its_known_form() {
        assert_eq!(encode(b"OK"), b"$OK#9a");
        assert_eq!(encode(b""), b"$#00");
        assert_eq!(encode(b"a}b"), b"$a}]b#9d");
        assert_eq!(hex(&[0, 0x9a, 0xff]), b"009aff");
        assert_eq!(bytes_of(b"009aFf"), Some(vec![0, 0x9a, 0xff]));
        assert_eq!([bytes_of(b"0"), bytes_of(b"0x"), bytes_of(b"00 ")], [None, None, None]);
    }

    #[test]
    fn every_byte_survives_the_way_there_and_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), [Arrival::Packet(all)]);
    }

    #[test]
    fn acknowledgements_packets_and_noise_are_told_apart() {
        assert_eq!(
            decode(b"+\0\0$T02thread:01;#04noise-$OK#9A"),
            [
                Arrival::Taken,
                Arrival::Packet(b"T02thread:01;".to_vec()),
                Arrival::Damaged,
                Arrival::Packet(b"OK".to_vec())
            ]
        );
    }

    #[test]
    fn repetitions_are_expanded() {
        assert_eq!(decode(&packet(b"0* ")), [Arrival::Packet(b"0000".to_vec())]);
        assert_eq!(decode(&packet(b"x0*\"1")), [Arrival::Packet(b"x0000001".to_vec())]);
    }

    #[test]
    fn damage_is_garbled_and_the_next_packet_is_read() {
        for bad in [&b"$OK#9b"[..], b"$OK#zz", &packet(b"x}"), &packet(b"* "), &packet(b"a*\x01")] {
            let both = [bad, b"$OK#9a"].concat();
            assert_eq!(decode(&both), [Arrival::Garbled, Arrival::Packet(b"OK".to_vec())], "{bad:?}");
        }
        assert_eq!(decode(b"$lost$OK#9a"), [Arrival::Packet(b"OK".to_vec())]);
        assert!(decode(&[&b"$"[..], &vec![b'a'; 2 * LONGEST]].concat()).contains(&Arrival::Garbled));
    }

    /// A packet around bytes that are sent as they are.
    fn packet(raw: &[u8]) -> Vec<u8> {
        [b"$", raw, b"#", &hex(&[checksum(raw)])].concat()
    }
}
