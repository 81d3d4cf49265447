//! pkt-lines. Spec: git, gitprotocol-common(5), "pkt-line Format".

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest packet with its length.
pub(crate) const MAX: usize = 65_520;

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet {
    /// `0000`.
    Flush,
    /// `0001`.
    Delimiter,
    /// `0002`.
    End,
    /// Anything else, without the length.
    Data(Bytes),
}

/// The bytes are not a packet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the length of a packet")]
pub(crate) struct PacketError(String);

/// Takes the first packet off `buffer`; `None` if it is not there whole yet.
pub(crate) fn decode(buffer: &mut BytesMut) -> Result<Option<Packet>, PacketError> {
    let Some(head) = buffer.get(..4) else { return Ok(None) };
    let bad = || PacketError(head.escape_ascii().to_string());
    let text = std::str::from_utf8(head).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
    let length = text.and_then(|text| usize::from_str_radix(text, 16).ok()).ok_or_else(bad)?;
    let packet = match length {
        0 => Packet::Flush,
        1 => Packet::Delimiter,
        2 => Packet::End,
        4..=MAX if buffer.len() < length => return Ok(None),
        4..=MAX => {
            let mut packet = buffer.split_to(length);
            packet.advance(4);
            return Ok(Some(Packet::Data(packet.freeze())));
        }
        _ => return Err(bad()),
    };
    buffer.advance(4);
    Ok(Some(packet))
}

/// Appends a packet; `payload` is cut at the longest a packet can hold.
pub(crate) fn data(buffer: &mut BytesMut, payload: &[u8]) {
    let payload = &payload[..payload.len().min(MAX - 4)];
    buffer.put_slice(format!("{:04x}", payload.len() + 4).as_bytes());
    buffer.put_slice(payload);
}

/// Appends a flush packet.
pub(crate) fn flush(buffer: &mut BytesMut) {
    buffer.put_slice(b"0000");
}

/// Appends `payload` on a side band, in as many packets as it takes; an empty one is a packet too.
pub(crate) fn band(buffer: &mut BytesMut, band: u8, payload: &[u8]) {
    let mut rest = payload;
    loop {
        let (part, after) = rest.split_at(rest.len().min(MAX - 5));
        buffer.put_slice(format!("{:04x}", part.len() + 5).as_bytes());
        buffer.put_u8(band);
        buffer.put_slice(part);
        rest = after;
        if rest.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8]) -> (Vec<Packet>, Option<PacketError>) {
        let mut buffer = BytesMut::from(bytes);
        let mut packets = Vec::new();
        loop {
            match decode(&mut buffer) {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => return (packets, None),
                Err(error) => return (packets, Some(error)),
            }
        }
    }

    #[test]
    fn packets() {
        let (packets, error) = all(b"0006a\n00040000000100020007b");
        assert_eq!(error, None);
        let data = |bytes: &'static [u8]| Packet::Data(Bytes::from_static(bytes));
        assert_eq!(packets, [data(b"a\n"), data(b""), Packet::Flush, Packet::Delimiter, Packet::End]);
    }

    #[test]
    fn what_is_not_a_length() {
        for bytes in [&b"0003"[..], b"zzzz", b"fff1", b"ffff", b"+00a", b" 00a", b"GET ", &[0xff; 4]] {
            assert!(all(bytes).1.is_some(), "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            all(&bytes);
        }

        #[test]
        fn hex_heads_parse_or_fail(head in "[0-9a-fA-F+ ]{4}", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            all(&[head.as_bytes(), &bytes].concat());
        }

        #[test]
        fn what_is_written_is_read(lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut buffer = BytesMut::new();
            for line in &lines {
                data(&mut buffer, line);
            }
            flush(&mut buffer);
            let (mut packets, error) = all(&buffer);
            prop_assert_eq!(error, None);
            prop_assert_eq!(packets.pop(), Some(Packet::Flush));
            prop_assert_eq!(packets, lines.into_iter().map(|line| Packet::Data(line.into())).collect::<Vec<_>>());
        }
    }

    #[test]
    fn long_lines_take_several_packets() {
        let mut buffer = BytesMut::new();
        band(&mut buffer, 2, &vec![b'x'; 150_000]);
        let (packets, error) = all(&buffer);
        assert_eq!(error, None);
        assert_eq!(packets.len(), 3);
    }
}
