//! How the era is found out, and what it changes.

use casemate_mcp::client::{CloseReason, OpenError, RequestError};
use casemate_mcp::{Conversation, Era};
use serde_json::json;

use super::peer::{
    LONG, Peer, SHORT, discover_result, initialize_result, legacy, modern, open_with, options, params, result,
};

const MODERN: Era = Era::Modern { version: "2026-07-28" };

#[tokio::test]
async fn every_known_legacy_revision_is_spoken() {
    for version in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
        let conversation = open_with(options(), async |mut peer: Peer| {
            let request = peer.expect("initialize").await;
            let client = json!({"name": "test", "version": "0"});
            let asked = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client});
            assert_eq!(request["params"], asked);
            peer.answer(&request, initialize_result(version)).await;
            let told = peer.expect("notifications/initialized").await;
            assert_eq!(told.get("id"), None);
            peer
        });
        let conversation = conversation.await.unwrap();
        assert_eq!(conversation.era(), Era::Legacy { version });
        assert_eq!(conversation.server_info().unwrap().name, "peer");
        assert_eq!(conversation.initialize_result().get(), initialize_result(version).to_string());
    }
}

#[tokio::test]
async fn a_server_that_refuses_initialize_is_asked_what_it_speaks() {
    for code in [-32601, -32022, -32602, -32600] {
        let conversation = open_with(options(), async |mut peer: Peer| {
            let request = peer.expect("initialize").await;
            peer.refuse(&request, code).await;
            let request = peer.expect("server/discover").await;
            let meta = &request["params"]["_meta"];
            assert_eq!(meta["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
            assert_eq!(meta["io.modelcontextprotocol/clientCapabilities"], json!({}));
            assert_eq!(meta["io.modelcontextprotocol/clientInfo"], json!({"name": "test", "version": "0"}));
            peer.answer(&request, discover_result()).await;
            peer
        });
        let conversation = conversation.await.unwrap();
        assert_eq!(conversation.era(), MODERN);
        assert_eq!(conversation.server_info().unwrap().version, "2");
        assert_eq!(conversation.initialize_result().get(), discover_result().to_string());
    }
}

#[tokio::test]
async fn a_remembered_era_is_tried_first_and_may_be_wrong() {
    let mut remembered = options();
    remembered.era = Some(MODERN);
    let conversation = open_with(remembered.clone(), async |mut peer: Peer| {
        let request = peer.expect("server/discover").await;
        peer.answer(&request, discover_result()).await;
        peer
    });
    assert_eq!(conversation.await.unwrap().era(), MODERN);

    let conversation = open_with(remembered.clone(), async |mut peer: Peer| {
        let request = peer.expect("server/discover").await;
        peer.refuse(&request, -32601).await;
        peer.initialize().await;
        peer
    });
    assert_eq!(conversation.await.unwrap().era(), Era::Legacy { version: "2025-11-25" });

    remembered.era = Some(Era::Legacy { version: "2024-11-05" });
    let conversation = open_with(remembered, async |mut peer: Peer| {
        let request = peer.expect("initialize").await;
        assert_eq!(request["params"]["protocolVersion"], "2025-11-25", "it may have been updated");
        peer.answer(&request, initialize_result("2025-06-18")).await;
        peer.expect("notifications/initialized").await;
        peer
    });
    assert_eq!(conversation.await.unwrap().era(), Era::Legacy { version: "2025-06-18" });
}

#[tokio::test]
async fn an_unknown_revision_is_an_error() {
    let opened = open_with(options(), async |mut peer: Peer| {
        let request = peer.expect("initialize").await;
        peer.answer(&request, initialize_result("2099-01-01")).await;
        peer
    });
    let opened = opened.await;
    assert!(
        matches!(&opened, Err(OpenError::UnknownVersion { offered }) if offered == "2099-01-01"),
        "{opened:?}"
    );
    let opened = open_with(options(), async |mut peer: Peer| {
        let request = peer.expect("initialize").await;
        peer.refuse(&request, -32022).await;
        let request = peer.expect("server/discover").await;
        peer.answer(&request, json!({"supportedVersions": ["2099-01-01", "2100-01-01"]})).await;
        peer
    });
    let opened = opened.await;
    assert!(
        matches!(&opened, Err(OpenError::UnknownVersion { offered }) if offered == "2099-01-01, 2100-01-01"),
        "{opened:?}"
    );
}

#[tokio::test]
async fn a_server_that_refuses_both_is_reported_with_its_first_error() {
    let opened = open_with(options(), async |mut peer: Peer| {
        let request = peer.expect("initialize").await;
        peer.refuse(&request, -32603).await;
        let request = peer.expect("server/discover").await;
        peer.refuse(&request, -32601).await;
        peer
    });
    let error = opened.await.unwrap_err();
    assert_eq!(error.to_string(), "the server refuses initialize: no (-32603)");

    let (mut peer, reader, writer) = Peer::new();
    let serve = async {
        let request = peer.expect("initialize").await;
        peer.refuse(&request, -32603).await;
        peer.expect("server/discover").await;
        drop(peer);
    };
    let (opened, ()) = tokio::join!(Conversation::open(reader, writer, options()), serve);
    let error = opened.unwrap_err();
    assert_eq!(error.to_string(), "the server refuses initialize: no (-32603)");
}

#[tokio::test]
async fn a_result_without_a_version_is_an_error() {
    for result in [json!({}), json!({"protocolVersion": 3}), json!(null), json!([])] {
        let opened = open_with(options(), async |mut peer: Peer| {
            let request = peer.expect("initialize").await;
            peer.answer(&request, result.clone()).await;
            peer
        });
        let opened = opened.await;
        assert!(matches!(opened, Err(OpenError::Malformed { .. })), "{result}: {opened:?}");
    }
}

#[tokio::test]
async fn a_silent_server_and_a_dead_one_are_told_apart() {
    let mut impatient = options();
    impatient.negotiate_timeout = SHORT;
    let opened = open_with(impatient, async |peer: Peer| peer).await;
    assert!(matches!(opened, Err(OpenError::NoAnswer(RequestError::Timeout { .. }))), "{opened:?}");

    let (peer, reader, writer) = Peer::new();
    drop(peer);
    let opened = tokio::spawn(Conversation::open(reader, writer, options())).await.unwrap();
    let Err(OpenError::NoAnswer(RequestError::Closed { reason, .. })) = opened else { panic!("{opened:?}") };
    assert!(matches!(reason, CloseReason::ServerClosed | CloseReason::WriteFailed(_)), "{reason:?}");
}

#[tokio::test]
async fn a_hostile_name_is_cut() {
    let conversation = open_with(options(), async |mut peer: Peer| {
        let request = peer.expect("initialize").await;
        let info = json!({"name": "n".repeat(1 << 20), "version": 7});
        let mut result = initialize_result("2025-11-25");
        result["serverInfo"] = info;
        peer.answer(&request, result).await;
        peer.expect("notifications/initialized").await;
        peer
    });
    assert_eq!(conversation.await.unwrap().server_info(), None);
    let conversation = open_with(options(), async |mut peer: Peer| {
        let request = peer.expect("initialize").await;
        let mut result = initialize_result("2025-11-25");
        result["serverInfo"] = json!({"name": "n".repeat(1 << 20)});
        peer.answer(&request, result).await;
        peer.expect("notifications/initialized").await;
        peer
    });
    assert_eq!(conversation.await.unwrap().server_info().unwrap().name.len(), 256);
}

#[tokio::test]
async fn a_sign_of_life_is_asked_for_as_the_era_has_it() {
    let (conversation, mut peer) = legacy(options()).await;
    let serve = async {
        let request = peer.expect("ping").await;
        peer.answer(&request, json!({})).await;
    };
    tokio::join!(async { conversation.ping(LONG).await.unwrap() }, serve);

    let (conversation, mut peer) = modern().await;
    let serve = async {
        let request = peer.expect("server/discover").await;
        peer.answer(&request, discover_result()).await;
    };
    tokio::join!(async { conversation.ping(LONG).await.unwrap() }, serve);
    assert!(conversation.ping(SHORT).await.is_err());
}

#[tokio::test]
async fn modern_requests_carry_their_meta_and_results_come_as_they_are() {
    let (conversation, mut peer) = modern().await;
    let given = params(json!({"name": "ask", "_meta": {"traceparent": "t"}}));
    let asked = conversation.request("tools/call", Some(&given), LONG);
    let wanted = json!({"resultType": "input_required", "requestState": "s", "inputRequests": {}});
    let serve = async {
        let request = peer.expect("tools/call").await;
        let meta = &request["params"]["_meta"];
        assert_eq!(meta["traceparent"], "t");
        assert_eq!(meta["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
        assert_eq!(request["params"]["name"], "ask");
        peer.answer(&request, wanted.clone()).await;
    };
    let (answer, ()) = tokio::join!(asked, serve);
    assert_eq!(result(answer), wanted);
}

#[tokio::test]
async fn a_subscription_that_the_server_cancels_is_over() {
    let (conversation, mut peer) = modern().await;
    let asked = conversation.request("subscriptions/listen", None, LONG);
    let serve = async {
        let request = peer.expect("subscriptions/listen").await;
        let params = json!({"requestId": request["id"]});
        let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params});
        peer.say(cancelled.to_string()).await;
    };
    let (answer, ()) = tokio::join!(asked, serve);
    assert!(matches!(answer, Err(RequestError::Ended { .. })), "{answer:?}");
}
