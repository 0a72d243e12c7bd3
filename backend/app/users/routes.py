"""Routes of the users' domain."""

from __future__ import annotations

import hmac
from typing import Annotated, Literal

from litestar import Controller, get, post, put
from litestar.di import NamedDependency
from litestar.exceptions import ClientException, NotFoundException
from litestar.params import FromPath, JSONBody
from litestar.status_codes import HTTP_202_ACCEPTED, HTTP_409_CONFLICT
from msgspec import Meta, Struct
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.jobs.views import EnqueuedJob
from app.users.models import User, UserStatus
from app.users.tasks import send_welcome_email, update_user_status


class SignUp(Struct, forbid_unknown_fields=True):
    """Who wants to sign up."""

    email: Annotated[str, Meta(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$", max_length=320)]
    name: Annotated[str, Meta(pattern=r"^[^\r\n]+$", max_length=200)]


class Verification(Struct, forbid_unknown_fields=True):
    """The code out of the welcome mail."""

    token: str


class StatusChange(Struct, forbid_unknown_fields=True):
    """Where a user is to stand."""

    status: Literal["verified", "suspended"]


class UserView(Struct):
    """A user as others see one."""

    id: int
    email: str
    name: str
    status: str

    @classmethod
    def of(cls, user: User) -> UserView:
        """Leave out what is secret."""
        return cls(id=user.id, email=user.email, name=user.name, status=user.status)


class SignedUp(Struct):
    """The new user and the job that sends the welcome mail."""

    user: UserView
    job: EnqueuedJob


class UserController(Controller):
    """Sign-up, verification and status."""

    path = "/users"
    tags = ("Users",)

    @post()
    async def sign_up(self, data: JSONBody[SignUp], db_session: NamedDependency[AsyncSession]) -> SignedUp:
        """Create a user and send the welcome mail; send the request again if the broker was away."""
        user = await db_session.scalar(select(User).where(User.email == data.email))
        if user is None:
            user = User(email=data.email, name=data.name)
            db_session.add(user)
            # The worker may be faster than the end of this request, so the row has to be there before the job is.
            await db_session.commit()
        elif user.welcome_sent_at is not None:
            raise ClientException(f"{data.email} has signed up already", status_code=HTTP_409_CONFLICT)
        job = await send_welcome_email.using(key=f"welcome-{user.id}").enqueue(user_id=user.id)
        return SignedUp(user=UserView.of(user), job=EnqueuedJob.of(job))

    @get("/{user_id:int}")
    async def show(self, user_id: FromPath[int], db_session: NamedDependency[AsyncSession]) -> UserView:
        """Show one user."""
        return UserView.of(await _find(db_session, user_id))

    @post("/{user_id:int}/verification", status_code=200)
    async def verify(
        self, user_id: FromPath[int], data: JSONBody[Verification], db_session: NamedDependency[AsyncSession]
    ) -> UserView:
        """Verify the address with the code out of the welcome mail."""
        user = await _find(db_session, user_id)
        if not hmac.compare_digest(user.verification_token.encode(), data.token.encode()):
            raise ClientException("this is not the code out of the welcome mail")
        if user.status == UserStatus.UNVERIFIED.value:
            user.status = UserStatus.VERIFIED.value
        return UserView.of(user)

    @put("/{user_id:int}/status", status_code=HTTP_202_ACCEPTED)
    async def change_status(
        self, user_id: FromPath[int], data: JSONBody[StatusChange], db_session: NamedDependency[AsyncSession]
    ) -> EnqueuedJob:
        """Have a user's status changed in the background."""
        user = await _find(db_session, user_id)
        job = await update_user_status.enqueue(user_id=user.id, status=UserStatus(data.status))
        return EnqueuedJob.of(job)


async def _find(session: AsyncSession, user_id: int) -> User:
    user = await session.get(User, user_id)
    if user is None:
        raise NotFoundException(f"there is no user {user_id}")
    return user
