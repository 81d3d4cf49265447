//! JSON with one spelling (RFC 8785, JSON Canonicalization Scheme), without floats.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Deepest nesting of arrays and objects.
pub const MAX_DEPTH: usize = 64;
/// Largest magnitude of an integer: 2^53 - 1, the last one every JSON reader keeps exactly.
pub const MAX_INTEGER: i64 = (1 << 53) - 1;
/// Longest JSON text read, in bytes.
pub const MAX_JSON_BYTES: usize = 64 << 20;

/// Why a value has no canonical form, or a text is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// A number with a fraction or an exponent.
    #[error("the number {0} is not an integer: write it as a string")]
    Float(String),
    /// An integer of 2^53 or more in magnitude.
    #[error("the integer {0} is not below 2^53: write it as a string")]
    Integer(String),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    Depth,
    /// Longer than [`MAX_JSON_BYTES`].
    #[error("{0} bytes of JSON, the limit is {MAX_JSON_BYTES}")]
    Length(usize),
    /// An object names a member twice.
    #[error("the member `{0}` appears twice")]
    Duplicate(String),
    /// Not JSON.
    #[error("not JSON: {0}")]
    Syntax(String),
}

/// The canonical bytes of `value`: members sorted by UTF-16 code units, no white space.
pub fn canonical(value: &Value) -> Result<Vec<u8>, CanonicalError> {
    let mut out = Vec::with_capacity(256);
    write_value(value, 0, &mut out)?;
    Ok(out)
}

fn write_value(value: &Value, depth: usize, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => out.extend_from_slice(integer(number)?.to_string().as_bytes()),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            if depth == MAX_DEPTH {
                return Err(CanonicalError::Depth);
            }
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_value(item, depth + 1, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            if depth == MAX_DEPTH {
                return Err(CanonicalError::Depth);
            }
            let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
            sorted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push(b'{');
            for (i, (name, member)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_string(name, out);
                out.push(b':');
                write_value(member, depth + 1, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn integer(number: &Number) -> Result<i64, CanonicalError> {
    match number.as_i64() {
        Some(n) if (-MAX_INTEGER..=MAX_INTEGER).contains(&n) => Ok(n),
        Some(n) => Err(CanonicalError::Integer(n.to_string())),
        None if number.is_u64() => Err(CanonicalError::Integer(number.to_string())),
        None => Err(CanonicalError::Float(number.to_string())),
    }
}

/// RFC 8785 §3.2.2.2: the short escapes, `\u00xx` in lower case for other controls, the rest as is.
fn write_string(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x0d => out.extend_from_slice(b"\\r"),
            0x00..=0x1f => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// Reads JSON that has one meaning: no member twice, no floats, integers below 2^53, at most
/// [`MAX_DEPTH`] deep and [`MAX_JSON_BYTES`] long. White space and member order are free.
pub fn parse_strict(bytes: &[u8]) -> Result<Value, CanonicalError> {
    if bytes.len() > MAX_JSON_BYTES {
        return Err(CanonicalError::Length(bytes.len()));
    }
    // serde's errors carry text alone, so the reason travels beside them.
    let reason = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0, reason: &reason }.deserialize(&mut reader).and_then(|value| {
        reader.end()?;
        Ok(value)
    });
    value.map_err(|error| reason.take().unwrap_or_else(|| CanonicalError::Syntax(error.to_string())))
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    reason: &'a RefCell<Option<CanonicalError>>,
}

impl Strict<'_> {
    fn refuse<T, E: serde::de::Error>(self, error: CanonicalError) -> Result<T, E> {
        let text = error.to_string();
        self.reason.replace(Some(error));
        Err(E::custom(text))
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return self.refuse(CanonicalError::Depth);
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        if (-MAX_INTEGER..=MAX_INTEGER).contains(&value) {
            Ok(value.into())
        } else {
            self.refuse(CanonicalError::Integer(value.to_string()))
        }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => self.refuse(CanonicalError::Integer(value.to_string())),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.refuse(CanonicalError::Float(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(inner)?;
            if members.contains_key(&name) {
                return self.refuse(CanonicalError::Duplicate(name));
            }
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn text(value: &Value) -> String {
        String::from_utf8(canonical(value).unwrap()).unwrap()
    }

    #[test]
    fn sorts_by_utf16_as_rfc_8785_section_3_2_3() {
        let value = json!({
            "\u{20ac}": "Euro Sign", "\r": "Carriage Return", "\u{fb33}": "Hebrew Letter Dalet With Dagesh",
            "1": "One", "\u{1f600}": "Emoji: Grinning Face", "\u{80}": "Control", "\u{f6}": "Latin Small Letter O With Diaeresis",
        });
        let order = ["Carriage Return", "One", "Control", "Latin Small", "Euro Sign", "Emoji", "Hebrew"];
        let out = text(&value);
        let places: Vec<usize> = order.iter().map(|word| out.find(word).unwrap()).collect();
        assert!(places.is_sorted(), "{out}");
    }

    #[test]
    fn escapes_as_rfc_8785_section_3_2_2() {
        let value = json!({"string": "\u{20ac}$\u{f}\nA'B\"\\\\\"/", "literals": [null, true, false]});
        assert_eq!(text(&value), "{\"literals\":[null,true,false],\"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}");
    }

    #[test]
    fn refuses_what_has_no_single_spelling() {
        let check =
            |input: &str, expect: CanonicalError| assert_eq!(parse_strict(input.as_bytes()), Err(expect), "{input}");
        check(r#"{"a":1,"a":1}"#, CanonicalError::Duplicate("a".into()));
        check(r#"{"a":{"b":[{"c":1,"\u0063":2}]}}"#, CanonicalError::Duplicate("c".into()));
        check("1.5", CanonicalError::Float("1.5".into()));
        check("[1.0]", CanonicalError::Float("1".into()));
        check("-0", CanonicalError::Float("-0".into()));
        check("9007199254740992", CanonicalError::Integer("9007199254740992".into()));
        check("-9007199254740992", CanonicalError::Integer("-9007199254740992".into()));
        check("18446744073709551615", CanonicalError::Integer("18446744073709551615".into()));
        check(&format!("{}{}", "[".repeat(65), "]".repeat(65)), CanonicalError::Depth);
        assert!(parse_strict(format!("{}{}", "[".repeat(64), "]".repeat(64)).as_bytes()).is_ok());
        for bad in ["", "{", "{}x", "nul", "\"\\ud800\"", "\"\u{1}\"", "01", "{} {}", "\u{feff}{}"] {
            assert!(matches!(parse_strict(bad.as_bytes()), Err(CanonicalError::Syntax(_))), "{bad:?}");
        }
        assert!(matches!(parse_strict(b"\"\xff\""), Err(CanonicalError::Syntax(_))));
        assert!(parse_strict(&vec![b' '; MAX_JSON_BYTES + 1]).is_err());
    }

    #[test]
    fn refuses_to_write_what_it_would_not_read() {
        assert!(matches!(canonical(&json!(1.5)), Err(CanonicalError::Float(_))));
        assert!(matches!(canonical(&json!(1u64 << 53)), Err(CanonicalError::Integer(_))));
        assert!(matches!(canonical(&json!(u64::MAX)), Err(CanonicalError::Integer(_))));
        assert_eq!(canonical(&json!(MAX_INTEGER)), Ok(MAX_INTEGER.to_string().into_bytes()));
        let deep = (0..=MAX_DEPTH).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(canonical(&deep), Err(CanonicalError::Depth));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-MAX_INTEGER..=MAX_INTEGER).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn reads_back_what_it_writes(value in any_value()) {
            let bytes = canonical(&value).unwrap();
            let again = parse_strict(&bytes).unwrap();
            prop_assert_eq!(&again, &value);
            prop_assert_eq!(canonical(&again).unwrap(), bytes);
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_strict(&bytes);
        }
    }
}
