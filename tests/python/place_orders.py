"""Places orders as a foreign client would: with Python's gRPC and stubs made from the contracts. Takes the addresses of
inventory, payment, shipping and order. Any difference from what should happen ends it with a traceback."""

import itertools
import sys
import time

import grpc
from breaker.v1 import query_pb2 as breaker, query_pb2_grpc as breaker_grpc
from google.type import money_pb2, postal_address_pb2
from inventory.v1 import command_pb2 as inventory, command_pb2_grpc as inventory_grpc
from inventory.v1 import query_pb2 as stock, query_pb2_grpc as stock_grpc
from order.v1 import command_pb2 as order, command_pb2_grpc as order_grpc
from order.v1 import order_pb2 as orders
from order.v1 import query_pb2 as order_query, query_pb2_grpc as order_query_grpc
from payment.v1 import command_pb2 as payment, command_pb2_grpc as payment_grpc
from payment.v1 import query_pb2 as accounts, query_pb2_grpc as accounts_grpc
from saga.v1 import query_pb2 as saga, query_pb2_grpc as saga_grpc, saga_pb2
from shipping.v1 import query_pb2 as shipments, query_pb2_grpc as shipments_grpc

# Far more than anything takes; a call without an end would hang a test for ever.
TIMEOUT = 30

at_inventory, at_payment, at_shipping, at_order = (grpc.insecure_channel(address) for address in sys.argv[1:])


def usd(units):
    return money_pb2.Money(currency_code="USD", units=units)


def token_of(call):
    """What makes a query wait for what a command answered: the views are a moment behind it."""
    return [("consistency-token", dict(call.initial_metadata())["consistency-token"])]


def place(order_id, customer, region, **more):
    request = order.PlaceOrderRequest(
        request_id=order_id,
        order_id=order_id,
        customer_id=customer,
        items=[orders.OrderItem(sku="tea", quantity=2)],
        address=postal_address_pb2.PostalAddress(region_code=region, address_lines=["Bahnhofstrasse 1"]),
        wait_for_completion=True,
    )
    for field, value in more.items():
        setattr(request, field, value)
    reply, call = order_grpc.OrderCommandServiceStub(at_order).PlaceOrder.with_call(request, timeout=TIMEOUT)
    return reply.order, token_of(call)


# Commands answer a token, and a query that carries it sees them at once.
added, call = inventory_grpc.InventoryCommandServiceStub(at_inventory).AddStock.with_call(
    inventory.AddStockRequest(request_id="s", sku="tea", quantity=10, unit_price=usd(3)), timeout=TIMEOUT
)
assert added.available == 10, added
seen = stock_grpc.InventoryQueryServiceStub(at_inventory).GetStock(
    stock.GetStockRequest(sku="tea"), metadata=token_of(call), timeout=TIMEOUT
)
assert (seen.stock.added, seen.stock.available, seen.stock.reserved) == (10, 10, 0), seen
_, call = payment_grpc.PaymentCommandServiceStub(at_payment).DepositFunds.with_call(
    payment.DepositFundsRequest(request_id="d", customer_id="ann", amount=usd(100)), timeout=TIMEOUT
)
deposited = token_of(call)

# One order completes, and asking again with the same request gives the same order.
first, _ = place("p-1", "ann", "CH")
assert first.state == orders.ORDER_STATE_COMPLETED and first.total == usd(6), first
again, _ = place("p-1", "ann", "CH")
assert again == first, again

# One is refused by payment, one by shipping after the charge.
strange, _ = place("p-2", "bob", "CH")
assert (strange.state, strange.rejection.reason) == (orders.ORDER_STATE_REJECTED, "UNKNOWN_ACCOUNT"), strange
far, after = place("p-3", "ann", "AQ")
assert (far.state, far.rejection.step, far.rejection.reason) == (
    orders.ORDER_STATE_REJECTED,
    "ship_order",
    "UNDELIVERABLE_ADDRESS",
), far

# The same request_id with another order is refused, with the reason in the status' details.
try:
    place("p-1", "ann", "DE")
    raise AssertionError("another order with a used request_id was accepted")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.ALREADY_EXISTS, error
    assert b"REQUEST_ID_REUSED" in dict(error.trailing_metadata())["grpc-status-details-bin"], error

# A stream of one order tells how it stands and ends with it.
watched = list(
    order_query_grpc.OrderQueryServiceStub(at_order).WatchOrder(
        order_query.WatchOrderRequest(order_id="p-1"), metadata=after, timeout=TIMEOUT
    )
)
assert watched[-1].order.state == orders.ORDER_STATE_COMPLETED, watched

# So does a saga.
sagas = saga_grpc.SagaQueryServiceStub(at_order)
told = list(sagas.WatchSagas(saga.WatchSagasRequest(saga_id="p-3"), metadata=after, timeout=TIMEOUT))
assert told[-1].saga.phase == saga_pb2.SAGA_PHASE_COMPENSATED, told
compensated = [step.name for step in told[-1].saga.steps if step.state == saga_pb2.STEP_STATE_COMPENSATED]
assert compensated == ["reserve_inventory", "charge_customer"], told[-1]

# Pages of one lead through all orders, the newest first.
listing = order_query_grpc.OrderQueryServiceStub(at_order)
listed, page_token = [], ""
for _ in itertools.count():
    page = listing.ListOrders(
        order_query.ListOrdersRequest(page_size=1, page_token=page_token), metadata=after, timeout=TIMEOUT
    )
    listed += [listed_order.order_id for listed_order in page.orders]
    page_token = page.next_page_token
    if not page_token:
        break
assert listed == ["p-3", "p-2", "p-1"], listed

# The books add up, as soon as the views have followed.
for _ in itertools.count():
    account = accounts_grpc.PaymentQueryServiceStub(at_payment).GetAccount(
        accounts.GetAccountRequest(customer_id="ann"), metadata=deposited, timeout=TIMEOUT
    )
    sent = shipments_grpc.ShippingQueryServiceStub(at_shipping).ListShipments(
        shipments.ListShipmentsRequest(), timeout=TIMEOUT
    )
    if account.account.balance == usd(94) and [shipment.shipment_id for shipment in sent.shipments] == ["p-1"]:
        break
    time.sleep(0.01)

peers = breaker_grpc.BreakerQueryServiceStub(at_order).ListBreakers(breaker.ListBreakersRequest(), timeout=TIMEOUT)
assert [peer.name for peer in peers.breakers] == [
    "inventory",
    "payment",
    "payment/streams",
    "shipping",
    "shipping.queries",
    "shipping/streams",
], peers
