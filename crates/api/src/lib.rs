//! The public API as values: objects, errors, pagination, and the failures on a call's path.
//!
//! Pure: no I/O. The shapes are a contract with SDKs that we do not own: fields are added, never renamed.

mod agent;
mod approval;
mod checkpoint;
mod discovery;
mod environment;
mod error;
mod event;
mod headers;
mod hop;
mod identity;
mod key;
mod mcp_url;
mod page;
mod patch;
mod place;
mod route;
mod schema;
mod sent;
mod session;
pub mod time;
mod tunnel;
mod vault;
mod work;
mod workspace;

pub use agent::{
    Agent, AgentDefinition, AgentOverrides, AgentTool, CreateAgent, ExecutionIdentity, McpServer, Metadata, Model,
    NamedToolConfig, PermissionPolicy, SANDBOX_TOOLS, SentConfig, SentMcpTool, SentModel, SentSandboxTool, SentServer,
    SentTool, SessionAgent, ToolConfig, UpdateAgent,
};
pub use approval::{
    Approval, ApprovalArguments, ApprovalCaller, ApprovalDecision, ApprovalStatus, Approver, Choice, DecideApproval,
};
pub use checkpoint::PublishedCheckpoint;
pub use discovery::Discovery;
pub use environment::{
    CreateEnvironment, DeletedEnvironment, Environment, EnvironmentConfig, EnvironmentDefinition, Networking, Packages,
    Scope, UpdateEnvironment,
};
pub use error::{ApiError, ErrorKind};
pub use event::{
    ContentBlock, Evaluated, Evaluation, Event, EventBody, ModelUsage, Permission, RetryStatus, SessionFailure,
    StopReason, Verdict,
};
pub use headers::{
    clean_trailers, frame_request, is_framed_once, is_loopback_name, is_plainly_framed, join_cookies, remove_beginning,
    strip_hop_by_hop, strip_ours,
};
pub use hop::{
    APPROVALS_HEADER, HEADER_PREFIX, HOP_HEADER, Hop, HopError, IDENTITY_HEADER, PATH_PREFIX_HEADER, REQUEST_ID_HEADER,
    approvals_audience,
};
pub use identity::{IdentityRotation, RotateIdentity};
pub use key::{CreateKey, CreatedKey, Grant, Key, KeyKind, KeyRole};
pub use mcp_url::{check_mcp_url, normalized_mcp_url};
pub use page::{Cursor, Limits, List, ListQuery, PageRequest};
pub use patch::{Patch, check_metadata, patch_metadata};
pub use place::{place_text, read_place};
pub use route::Route;
pub use sent::{SendEvents, SentEvents, initial_events};
pub use session::{
    CacheCreation, ChangedAgent, ChosenAgent, CreateSession, DeletedSession, Session, SessionList, SessionStats,
    SessionStatus, SessionThread, UpdateSession, Usage, no_resources,
};
pub use tunnel::{
    CreateCertificate, CreateTunnel, DisplayName, DisplayNameError, OrganizationTunnel, RotateToken, Tunnel,
    TunnelCertificate, TunnelToken,
};
pub use vault::{
    CreateCredential, CreateVault, Credential, CredentialAuth, CredentialDefinition, CredentialSecrets,
    CredentialValidation, DeletedCredential, DeletedVault, InjectionLocation, McpProbe, OauthRefresh, ProbedResponse,
    RefreshAttempt, RefreshStatus, SecretHosts, SecretText, TokenEndpointAuth, UpdateCredential, UpdateVault,
    ValidationStatus, Vault,
};
pub use work::{
    CreateEnvironmentKey, Healthcheck, HealthcheckOutcome, StopWork, UpdateWork, Work, WorkData, WorkHeartbeat,
    WorkQueueStats, WorkState,
};
pub use workspace::{CreateWorkspace, Workspace};
