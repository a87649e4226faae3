//! CA certificates that customers register: what is accepted meets the rules that can be told from outside. The input is
//! a text, or, behind a zero byte, the DER of a certificate.

#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use sortie_tls::{CaError, MAX_CA_PEM, RegisteredCa};

fuzz_target!(|input: &[u8]| {
    let text = match input.split_first() {
        Some((0, der)) => pem(der),
        _ => String::from_utf8_lossy(input).into_owned(),
    };
    match RegisteredCa::parse_any_time(&text) {
        Ok(ca) => {
            assert!(text.len() <= MAX_CA_PEM && !text.contains("PRIVATE KEY"));
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &ca.der());
            assert_eq!(ca.fingerprint(), hex::encode(digest));
            // The certificate is all that counts: written plainly, it is the same.
            let plain = pem(&ca.der());
            if plain.len() <= MAX_CA_PEM {
                let again = RegisteredCa::parse_any_time(&plain).expect("accepted again");
                assert_eq!(again.fingerprint(), ca.fingerprint());
            }
            for (time, valid) in [
                (ca.not_before_unix(), ca.not_before_unix() <= ca.not_after_unix()),
                (ca.not_before_unix().saturating_sub(1), false),
                (ca.not_after_unix().saturating_add(1), false),
            ] {
                assert_eq!(RegisteredCa::parse(&text, time).is_ok(), valid, "{time}");
            }
        }
        Err(CaError::TooLong) => assert!(text.len() > MAX_CA_PEM),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
