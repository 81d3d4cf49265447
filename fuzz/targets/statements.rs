//! Facts as they come from the ledger, a mirror or a bundle: envelopes, statements, predicates.
#![no_main]

use adamant_attest::predicate::{actor, binds};
use adamant_attest::{Envelope, Statement, canonical, parse_strict};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = parse_strict(bytes) {
        let printed = canonical(&value).expect("what has one meaning can be printed");
        assert_eq!(parse_strict(&printed).expect("and read again"), value);
    }
    if let Ok(envelope) = Envelope::parse(bytes) {
        assert_eq!(Envelope::parse(&envelope.to_bytes()).expect("what is printed can be read"), envelope);
    }
    let Ok(statement) = Statement::parse(bytes) else { return };
    let _ = (statement.recorded_at(), statement.link());
    if let Ok(printed) = statement.to_bytes() {
        assert_eq!(Statement::parse(&printed).expect("what is printed can be read"), statement);
    }
    if let Ok(predicate) = statement.predicate() {
        let _ = (actor(&predicate), binds(&predicate));
    }
});
