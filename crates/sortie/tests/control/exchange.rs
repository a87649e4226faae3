//! Tokens that a real authorization server (oidc-provider, on Node) gives for what the gateway signs about a caller.

use serde_json::json;
use sortie_testkit::TempHome;

use crate::common::{client, send, text};
use crate::provider::{Provider, SECRET};
use crate::support::{Point, grant};

#[tokio::test]
async fn who_trusts_the_keys_of_the_gateway_alone_exchanges_what_it_signs() {
    let home = TempHome::new().expect("home");
    let jwks = home.write("jwks.json", "{\"keys\": []}").expect("key set");
    let Some(provider) = Provider::knowing(Some(&jwks)).await else { return };
    let exchange = |route: &str, rest: &str| {
        format!(
            "\n[[routes.{route}.credentials]]\nname = \"{route}-exchange\"\nkind = \"token-exchange\"\n\
             token_url = \"{}/token\"\nclient_id = \"basic\"\nscope = \"read\"\n{rest}\n\
             secret = {{ command = [\"printf\", \"{SECRET}\"] }}\n",
            provider.url
        )
    };
    let ours = format!("subject = \"gateway\"\nsubject_audience = \"{}\"", provider.url);
    let rest = exchange("up", &ours) + &exchange("twin", "");
    let policies = |keys: &[crate::support::Key]| {
        keys.iter().map(|key| grant(key, "up", &["read"]) + &grant(key, "twin", &["read"])).collect()
    };
    let point = Point::with("", &rest, policies).await;
    let published = send(client().get(format!("{}/.well-known/jwks.json", point.gateway.health))).await.text();
    home.write("jwks.json", &published).expect("key set");

    for key in [&point.keys[0], &point.keys[0], &point.keys[1]] {
        let answer = point.call(key, "up", "read", &json!({})).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let seen = provider.seen().await;
    assert_eq!(seen.len(), 2, "one for each caller: {seen:?}");
    for (asked, key) in seen.iter().zip(&point.keys) {
        assert_eq!(text(asked, "/subject/sub"), format!("key:{}", key.id));
        assert_eq!(text(asked, "/subject/aud"), provider.url, "it is for the authorization server alone");
        assert_eq!(text(asked, "/subject/iss"), format!("urn:sortie:gateway:{}", point.tunnel.domain));
        assert_eq!(text(asked, "/subject/assurance"), "asserted");
    }
    let told: Vec<String> = point.server.recorder.requests().iter().map(|request| format!("{request:?}")).collect();
    assert_eq!(told.len(), 3);

    // The hub's word is what the other route sends, and nobody there knows the hub's keys.
    let answer = point.call(&point.keys[0], "twin", "read", &json!({})).await;
    assert_eq!((answer.status, answer.header("sortie-hop")), (502, Some("upstream-connect")), "{}", answer.text());
    let seen = provider.seen().await;
    let last = seen.last().expect("a request");
    assert_eq!(text(last, "/subject/aud"), format!("twin.{}", point.tunnel.domain));
    assert_eq!(point.server.recorder.requests().len(), 3);
}
