//! Whether names resolve: by asking.

use std::{io, net::SocketAddr, str::FromStr, time::Duration};

use hickory_proto::{
    op::{Message, MessageType, Query, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::{net::UdpSocket, time::timeout};

use super::answer::DOMAIN;

/// Who is on the same machine answers at once.
const PATIENCE: Duration = Duration::from_millis(250);
/// Longer is no answer to what is asked.
const LONGEST: usize = 512;

/// Asks for what is always there, the mesh's domain itself.
///
/// # Errors
///
/// Why names do not resolve, for people.
pub async fn ask(server: SocketAddr) -> Result<(), String> {
    match timeout(PATIENCE, try_ask(server)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{server}: {error}")),
        Err(_) => Err(format!("{server}: no answer within {PATIENCE:?}")),
    }
}

async fn try_ask(server: SocketAddr) -> io::Result<()> {
    let mut question = Message::query();
    let name = Name::from_str(DOMAIN).map_err(io::Error::other)?;
    question.add_query(Query::query(name, RecordType::SOA));
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut answer = [0; LONGEST];
    let length = socket.recv(&mut answer).await?;
    let said = Message::from_vec(answer.get(..length).unwrap_or_default());
    let said = said.map_err(io::Error::other)?;
    let answers = said.metadata.id == question.metadata.id
        && said.metadata.message_type == MessageType::Response
        && said.metadata.response_code == ResponseCode::NoError
        && !said.answers.is_empty();
    if answers { Ok(()) } else { Err(io::Error::other("it does not know the mesh's domain")) }
}
