pub mod config;
pub mod machine;
pub mod node;
pub mod services;
pub mod state;
