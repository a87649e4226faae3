use std::path::Path;

use sortie_credentials::{CredentialKind, Source};
use sortie_sinks::{Begin, Confirm, Format, OnFull, OnRefused, SinkKind, SinkSpec};

use crate::config::GatewayConfig;

const ROUTE: &str = "[routes.docs]\nupstream = \"http://10.0.0.5:8080\"\n";

fn parse(text: &str) -> Result<Vec<SinkSpec>, String> {
    let parsed = GatewayConfig::parse(&format!("{ROUTE}{text}"), Path::new("/etc/sortie/gateway.toml"));
    parsed.map(|config| config.audit.sinks).map_err(|error| error.to_string())
}

fn one(text: &str) -> Result<SinkSpec, String> {
    parse(&format!("[[audit.sinks]]\nname = \"siem\"\n{text}")).map(|mut sinks| sinks.pop().expect("one"))
}

#[test]
fn every_kind_is_read_and_shown_again() {
    let text = "[[audit.sinks]]\nname = \"siem\"\nkind = \"syslog\"\naddress = \"logs.corp:6514\"\nfacility = 4\n\
        enterprise_id = 12345\nconfirm = \"written\"\nformat = \"ocsf\"\nfrom = \"now\"\nspool_bytes = 2000000\n\
        on_full = \"drop-and-count\"\non_refused = \"skip\"\nbatch_records = 7\nbatch_bytes = 4096\n\
        batch_wait = \"2s\"\ntimeout = \"3s\"\n\
        tls = { ca_file = \"ca.pem\", client_cert_file = \"c.pem\", client_key_file = \"c.key\", server_name = \"log\" }\n\
        [[audit.sinks]]\nname = \"local\"\nkind = \"syslog\"\naddress = \"[::1]:514\"\n\
        [[audit.sinks]]\nname = \"otel\"\nkind = \"otlp\"\nurl = \"https://collector:4318/v1/logs\"\n\
        encoding = \"json\"\ntls.include_system_cas = true\ncredential = { secret.env = \"OTEL\" }\n\
        [[audit.sinks]]\nname = \"splunk\"\nkind = \"splunk\"\nurl = \"https://splunk:8088\"\ntoken.file = \"hec\"\n\
        index = \"audit\"\nsource = \"gw\"\nsourcetype = \"x\"\nacknowledge = true\ntls.ca_file = \"ca.pem\"\n\
        [[audit.sinks]]\nname = \"web\"\nkind = \"http\"\nurl = \"http://127.0.0.1:9000/in?x=1\"\nmethod = \"PUT\"\n\
        body = \"array\"\ncredential = { header = \"X-Api-Key\", prefix = \"k \", secret.env = \"KEY\" }\n";
    let sinks = parse(text).expect("settings");
    let names: Vec<&str> = sinks.iter().map(|sink| sink.kind.name()).collect();
    assert_eq!(names, ["syslog", "syslog", "otlp", "splunk", "http"]);
    let first = &sinks[0];
    assert_eq!((first.format, first.from, first.on_full), (Format::Ocsf, Begin::Now, OnFull::DropAndCount));
    assert_eq!((first.on_refused, first.spool_bytes, first.batch.records), (OnRefused::Skip, 2_000_000, 7));
    let SinkKind::Syslog(syslog) = &first.kind else { panic!("{first:?}") };
    assert_eq!((syslog.host.as_str(), syslog.port, syslog.facility), ("logs.corp", 6514, 4));
    assert_eq!(syslog.confirm, Confirm::Written);
    let tls = syslog.tls.as_ref().expect("tls");
    assert_eq!(tls.trust.ca_file.as_deref(), Some(Path::new("/etc/sortie/ca.pem")));
    let SinkKind::Splunk(splunk) = &sinks[3].kind else { panic!("{:?}", sinks[3]) };
    let CredentialKind::Header { header, prefix, secret } = &splunk.token.kind else { panic!("{splunk:?}") };
    assert_eq!((header.as_str(), prefix.as_str()), ("authorization", "Splunk "));
    assert_eq!(*secret, Source::File("/etc/sortie/hec".into()));
    let local = &sinks[1];
    assert_eq!((local.on_full, local.on_refused, local.spool_bytes), (OnFull::Deny, OnRefused::Stop, 1 << 30));

    let path = Path::new("/etc/sortie/gateway.toml");
    let whole = GatewayConfig::parse(&format!("{ROUTE}{text}"), path).expect("settings");
    let again = GatewayConfig::parse(&whole.to_toml().expect("toml"), path).expect("the same");
    assert_eq!(again.audit.sinks, sinks);
}

#[test]
fn wrong_settings_are_named_and_say_the_way_out() {
    let otlp = "kind = \"otlp\"\nurl = \"http://localhost:4318/v1/logs\"\n";
    for (text, said) in [
        ("kind = \"syslog\"", ":3: audit.sinks.0.address: a sink of kind syslog needs it"),
        ("kind = \"syslog\"\naddress = \"logs\"", "`logs` is not HOST:PORT"),
        ("kind = \"syslog\"\naddress = \"a@b:1\"", "is not HOST:PORT"),
        ("kind = \"syslog\"\naddress = \"10.0.0.1:514\"", "audit.sinks.0.tls: records go to other machines over TLS"),
        ("kind = \"syslog\"\naddress = \"10.0.0.1:514\"\ntls = {}", "TLS needs to know whom to trust"),
        ("kind = \"syslog\"\naddress = \"a:1\"\ninsecure = true\ntls.ca_file = \"x\"", "insecure: with tls it is not"),
        ("kind = \"syslog\"\naddress = \"[::1]:1\"\nfacility = 24", "facility: write 0 to 23"),
        (
            "kind = \"syslog\"\naddress = \"a:1\"\ntls = { ca_file = \"x\", server_name = \"a b\" }",
            "tls.server_name: `a b`",
        ),
        ("kind = \"syslog\"\nurl = \"https://a\"", "url: this is for sinks of kind otlp and splunk and http"),
        ("kind = \"otlp\"", "url: a sink of this kind needs it"),
        ("kind = \"otlp\"\nurl = \"http://collector:4318/\"", "url: records go over https://"),
        ("kind = \"otlp\"\nurl = \"https://u:secret@c/\"", "neither a user, nor a password"),
        ("kind = \"otlp\"\nurl = \"https://c/\"", "tls: TLS needs to know whom to trust"),
        ("kind = \"splunk\"\nurl = \"http://[::1]:8088\"", "token: a sink of kind splunk needs it"),
        ("kind = \"splunk\"\nurl = \"http://[::1]:8088\"\ntoken = \"B5A7\"", "no secret is written into this file"),
        ("kind = \"splunk\"\nurl = \"http://[::1]:8088\"\ntoken.vault = \"x\"", "token"),
        (&format!("{otlp}spool_bytes = 5"), "spool_bytes: write at least 1048576"),
        (&format!("{otlp}batch_records = 0"), "batch_records: write 1 to 10000"),
        (&format!("{otlp}batch_bytes = 1"), "batch_bytes: write 1024 to 16777216"),
        (&format!("{otlp}tls.ca_file = \"x\""), "tls: only https is spoken TLS with"),
        (&format!("{otlp}credential = {{ secret.env = \"X\", prefix = \"a\" }}"), "credential.prefix: this is for"),
        (&format!("{otlp}credential = {{ secret.env = \"X\", header = \"Host\" }}"), "credential.header: `Host`"),
        (&format!("{otlp}credential = {{ secret.env = \"X\", username = \"a:b\" }}"), "no colon"),
        (&format!("{otlp}on_full = \"wait\""), "unknown variant `wait`"),
        (&format!("{otlp}format = \"cef\""), "unknown variant `cef`"),
        (&format!("{otlp}colour = 1"), "unknown field `colour`"),
    ] {
        let error = one(text).expect_err(text);
        assert!(error.contains(said), "{text}: {error}");
        assert!(!error.contains("B5A7") && !error.contains("secret@"), "{error}");
    }
    let twice = "[[audit.sinks]]\nname = \"a\"\nkind = \"syslog\"\naddress = \"[::1]:1\"\n".repeat(2);
    assert!(parse(&twice).expect_err("twice").contains(":7: audit.sinks.1.name: there are two sinks `a`"));
    let named = parse("[[audit.sinks]]\nname = \"../x\"\nkind = \"http\"\nurl = \"http://localhost/\"\n");
    assert!(named.expect_err("name").contains("a name has 1 to 64"));
}
