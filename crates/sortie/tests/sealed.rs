//! A sealed route: the client's own TLS passes the edge unread and ends at the gateway, which demands a certificate.

use std::net::SocketAddr;
use std::time::Duration;

use sortie_testkit::{EchoServer, Load, Program, TempHome};
use sortie_tls::{Authority, Versions};

const WITHIN: Duration = Duration::from_secs(20);

fn sortie(home: &TempHome) -> Program {
    home.apply(Program::new(env!("CARGO_BIN_EXE_sortie")))
}

/// A client that finds `host` at the edge, trusts the tunnel's CA, and shows a certificate if it has one.
fn client(host: &str, edge: SocketAddr, ca: &str, own: Option<&Authority>) -> reqwest::Client {
    let tls = match own {
        Some(authority) => {
            let identity = authority.issue_client("agent-7", Duration::from_secs(600)).expect("client certificate");
            sortie_tls::client_config_with_identity(ca, false, Versions::Tls13, &[b"http/1.1"], &identity)
        }
        None => sortie_tls::client_config(ca, false, Versions::Tls13, &[b"http/1.1"]),
    };
    reqwest::Client::builder()
        .tls_backend_preconfigured((*tls.expect("client TLS")).clone())
        .resolve(host, edge)
        .no_proxy()
        .build()
        .expect("client")
}

#[tokio::test]
async fn only_a_client_with_a_certificate_of_the_routes_ca_comes_through() {
    let home = TempHome::new().expect("home");
    let upstream = EchoServer::start().await.expect("upstream");
    let mut hub = sortie(&home)
        .args(["hub", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0", "--data-dir"])
        .arg(home.join("hub"))
        .arg("--ready-file")
        .arg(home.join("hub.json"))
        .spawn()
        .expect("hub");
    let ready = hub.ready_file(&home.join("hub.json"), WITHIN).await.expect("hub is ready");
    let text = |name: &str| ready[name].as_str().expect(name).to_owned();
    let setup = home.join("setup");
    let mut init = sortie(&home)
        .env("API_TOKEN", text("api_key"))
        .args(["setup", "init", "--api-url", &text("api_url"), "--output", &format!("dir:{}", setup.display())])
        .spawn()
        .expect("setup");
    assert!(init.exit(WITHIN).await.expect("setup ends").success(), "{}", init.output());

    let clients = Authority::generate("Clients", 30).expect("client CA");
    home.write("clients.crt", clients.cert_pem()).expect("client CA file");
    let config = format!(
        "[upstream]\nallowed_ips = [\"127.0.0.0/8\"]\n[routes.vault]\nupstream = \"http://{0}\"\nmode = \"sealed\"\n\
         client_ca_file = \"clients.crt\"\n[routes.open]\nupstream = \"http://{0}\"\n",
        upstream.addr()
    );
    let config = home.write("gateway.toml", config).expect("config");
    let mut gateway = sortie(&home)
        .arg("gateway")
        .arg("--config")
        .arg(config)
        .arg("--data-dir")
        .arg(home.join("gateway"))
        .arg("--setup-dir")
        .arg(&setup)
        .arg("--ready-file")
        .arg(home.join("gateway.json"))
        .spawn()
        .expect("gateway");
    let serving = gateway.ready_file(&home.join("gateway.json"), WITHIN).await.expect("gateway is ready");
    let domain = serving["domain"].as_str().expect("domain");

    let edge: SocketAddr = text("edge_addr").parse().expect("address");
    let ca = std::fs::read_to_string(setup.join("ca.crt")).expect("CA");
    let sealed = format!("vault.{domain}");
    let url = format!("https://{sealed}:{}/small", edge.port());

    let answer = client(&sealed, edge, &ca, Some(&clients)).get(&url).send().await.expect("answered");
    assert_eq!(answer.status(), 200);
    assert!(!answer.bytes().await.expect("body").is_empty());
    // By both forms of the hostname's rule: the same connection serves no other host.
    let other = client(&sealed, edge, &ca, Some(&clients)).get(&url).header("host", format!("open.{domain}"));
    assert_eq!(other.send().await.expect("answered").status(), 421);

    let none = client(&sealed, edge, &ca, None).get(&url).send().await;
    assert!(none.is_err(), "no certificate, no call");
    let strangers = Authority::generate("Strangers", 30).expect("CA");
    let wrong = client(&sealed, edge, &ca, Some(&strangers)).get(&url).send().await;
    assert!(wrong.is_err(), "another CA's certificate is refused");

    // The hub's own way does not lead there, whatever key is shown.
    let label = domain.split('.').next().expect("label");
    let path = format!("{}/t/{label}/vault/small", text("api_url"));
    let by_hub = Load::get(path).header("x-api-key", &text("api_key")).once().await.expect("answered");
    assert_eq!(by_hub.status(), 502);
    assert_eq!(by_hub.headers()["sortie-hop"], "route");
}
