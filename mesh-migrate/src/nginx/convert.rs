//! placeholder
use super::tree::Config;
use crate::{ledger::Ledger, program::Program, source::Problem};
/// x
pub fn convert(_: &Config) -> Result<(Program, Ledger), Problem> {
    Ok(Default::default())
}
