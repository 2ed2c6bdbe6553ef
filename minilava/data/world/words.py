"""The short everyday words that pictures of the world may show."""

# What can be bought, for receipts; four letters at most.
ITEMS = tuple("tea milk egg rice soup salt cake meat corn nuts pear pen map lamp desk book".split())
WORDS = ITEMS + tuple(
    """go no up in bus taxi zoo park shop cafe bank hotel gym spa inn bar club open stop exit sale free push pull menu
    juice bread apple hot cold wet dry slow fast new old chair news east west north south day night sun rain""".split()
)
