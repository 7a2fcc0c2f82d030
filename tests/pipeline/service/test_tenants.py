"""Tokens are kept as digests, quotas fill up again."""

import pytest

from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.tenants import Quota, add_token, read_tenants


def test_a_file_holds_digests_and_each_line_lets_its_token_in(tmp_path):
    file = tmp_path / "tokens"
    (ada,), (bob,) = add_token("ada", file, None), add_token("bob", file, 500)
    assert ada not in file.read_text() and file.stat().st_mode & 0o077 == 0
    tenants = read_tenants(file)
    assert tenants.find(f"Bearer {ada}").name == "ada" and tenants.find(f"bearer {bob}").quota.per_minute == 500
    for wrong in (None, "", ada, f"Basic {ada}", f"Bearer {ada}x", "Bearer "):
        with pytest.raises(ServiceError, match="send a token that this service knows"):
            tenants.find(wrong)


@pytest.mark.parametrize(
    "line", ["ada", "ada 1234", "Ada " + "a" * 64, "ada " + "a" * 64 + " -1", "ada " + "a" * 64 + " 0", "ada " + "a" * 64 + " 1 2"]
)
def test_a_line_that_is_no_entry_is_named_by_its_number_alone(tmp_path, line):
    (tmp_path / "tokens").write_text(f"# people\n{line}\n")
    with pytest.raises(ValueError, match="line 2 is not: TENANT SHA256") as refused:
        read_tenants(tmp_path / "tokens")
    assert "a" * 64 not in str(refused.value)


def test_a_file_without_tokens_lets_nobody_in_and_is_refused(tmp_path):
    (tmp_path / "tokens").write_text("# nobody\n")
    with pytest.raises(ValueError, match="holds no token"):
        read_tenants(tmp_path / "tokens")


def test_a_name_of_a_tenant_is_small(tmp_path):
    with pytest.raises(ValueError, match="no name of a tenant"):
        add_token("../ada", tmp_path / "tokens", None)


def test_a_quota_fills_up_within_a_minute_and_no_further():
    now = [0.0]
    quota = Quota(60, lambda: now[0])
    quota.spend(60)
    with pytest.raises(ServiceError, match="quota") as refused:
        quota.spend(10)
    assert refused.value.retry_after == 10
    now[0] = 10
    quota.spend(10)
    now[0] = 1_000
    assert quota.left == 60
    with pytest.raises(ServiceError, match="may spend 60 a minute") as never:
        quota.spend(61)
    assert never.value.status == 413
