//! The part of the Workload API that is about JWT-SVIDs.

use std::collections::{BTreeMap, HashMap};

use mesh_api::spiffe::{
    JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse,
};
use mesh_core::jwt::{are_audiences, jwk_set};
use mesh_tunnel::Credentials;
use prost_types::{ListValue, Struct, Value, value::Kind};
use serde_json::{Map, Value as Json};
use tonic::Status;

use super::workload::id_of;
use crate::{
    agent::{Agent, Member},
    jwt,
};

/// A token for the identity that programs of this machine have.
pub(super) async fn fetch(
    agent: &Agent,
    member: &Member,
    request: JwtsvidRequest,
) -> Result<JwtsvidResponse, Status> {
    if !are_audiences(&request.audience) {
        return Err(Status::invalid_argument("a token needs an audience, and not too many"));
    }
    let id = member.node().workload.to_string();
    if !request.spiffe_id.is_empty() && request.spiffe_id != id {
        return Err(Status::permission_denied("no identity issued"));
    }
    let svid = jwt::token(agent, member, &request.audience).await?;
    let svids = vec![Jwtsvid { spiffe_id: id, svid, hint: String::new() }];
    Ok(JwtsvidResponse { svids })
}

/// What a token says, if it is believed.
pub(super) fn validate(
    member: &Member,
    request: &ValidateJwtsvidRequest,
) -> Result<ValidateJwtsvidResponse, Status> {
    if request.audience.is_empty() {
        return Err(Status::invalid_argument("a token is validated for an audience"));
    }
    let refused = |error: mesh_core::jwt::JwtError| {
        super::refuse(tonic::Code::InvalidArgument, error.code(), error)
    };
    let svid = jwt::verify(&member.node(), &request.audience, &request.svid).map_err(refused)?;
    Ok(ValidateJwtsvidResponse {
        spiffe_id: svid.id.to_string(),
        claims: Some(to_struct(svid.claims)),
    })
}

/// Keys by domain; of one that has none nothing is told.
pub(super) fn bundles(credentials: &Credentials) -> Option<JwtBundlesResponse> {
    let trust = credentials.trust();
    let told = trust.bundles.iter().filter(|(_, bundle)| !bundle.jwt_keys.is_empty());
    let bundles: HashMap<_, _> =
        told.map(|(domain, bundle)| (id_of(domain.as_str()), jwk_set(&bundle.jwt_keys))).collect();
    (!bundles.is_empty()).then_some(JwtBundlesResponse { bundles })
}

fn to_struct(claims: Map<String, Json>) -> Struct {
    let fields: BTreeMap<_, _> =
        claims.into_iter().map(|(name, claim)| (name, to_value(claim))).collect();
    Struct { fields }
}

/// No deeper than the parser goes.
fn to_value(json: Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        // Every number that was read has one.
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(to_value).collect() })
        }
        Json::Object(members) => Kind::StructValue(to_struct(members)),
    };
    Value { kind: Some(kind) }
}
