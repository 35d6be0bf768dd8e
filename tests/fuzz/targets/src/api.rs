//! What clients send to the HTTP API.

use vm_agent_schemas::api::{
    ApplyRequest, ApproveRequest, ChangeRequest, CreateRequest, DownRequest, ExecRequest, MessageRequest, PlanRequest,
    RollbackRequest, TaskRequest, TasksRequest, TokenRequest,
};

use crate::text::reads_back;

/// A body is a request, the same once written and read again, or it is none.
pub(crate) fn bodies(bytes: &[u8]) {
    reads_back::<ApplyRequest>(bytes);
    reads_back::<ApproveRequest>(bytes);
    reads_back::<ChangeRequest>(bytes);
    reads_back::<CreateRequest>(bytes);
    reads_back::<DownRequest>(bytes);
    reads_back::<ExecRequest>(bytes);
    reads_back::<MessageRequest>(bytes);
    reads_back::<PlanRequest>(bytes);
    reads_back::<RollbackRequest>(bytes);
    reads_back::<TaskRequest>(bytes);
    reads_back::<TasksRequest>(bytes);
    reads_back::<TokenRequest>(bytes);
}
