"""What a web process serves beside feeds and the intake."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from proxy.admin import AdminEdge, bearer_check
from proxy.clients import Trust
from proxy.clock import Clock
from proxy.composition.reading import Reading
from proxy.composition.syndicating import Syndication
from proxy.feeds.admin import PurgeRoutes
from proxy.resilience.admin_token import AdminToken
from proxy.settings import Settings
from proxy.syndication.admin import QueueAdminRoutes
from proxy.widget.routes import WidgetRoutes


def admin_routes(
    settings: Settings, clock: Clock, feeds: Reading, posts: Syndication, token: AdminToken
) -> list[Route]:
    """What operators may do over HTTP; nothing without a token."""
    if not token.is_set:
        return []
    edge = AdminEdge(bearer_check(token, Trust(settings.trusted_proxies)))
    queue = QueueAdminRoutes(posts.controls(clock), lambda: posts.book.current, clock, edge)
    return [*PurgeRoutes(feeds.purges, feeds.service, edge).routes(), *queue.routes()]


def widget_routes(settings: Settings, feeds: Reading) -> list[BaseRoute]:
    """The widget and its pages, which ask for feeds as everybody does."""
    # Accounts before feeds.
    named = sorted(settings.actors or (), key=lambda name: name.startswith("at://"))
    widget = WidgetRoutes(
        feeds.route.app,
        public_url=settings.public_url,
        plain_pictures=settings.upstream.startswith("http:"),
        any_origin="*" in settings.cors_origins,
        example=next(iter(named), None),
    )
    return widget.routes()
