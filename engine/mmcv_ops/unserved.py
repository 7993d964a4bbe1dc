"""The functions of mmcv's compiled module without a stand-in, by the reason."""

from __future__ import annotations

POINT_CLOUDS = "for point clouds and boxes in 3-D"
ROTATED = "for rotated boxes"
TEXT = "for text in images"
GENERATION = "for generators of images"
VIDEO = "for videos and optical flow"

UNSERVED_OPS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("assign_score_withk_forward", "assign_score_withk_backward", "ball_query_forward"),
            *("chamfer_distance_forward", "chamfer_distance_backward", "dynamic_point_to_voxel_forward"),
            *("dynamic_point_to_voxel_backward", "dynamic_voxelize_forward", "furthest_point_sampling_forward"),
            *("furthest_point_sampling_with_dist_forward", "fused_indice_conv_forward", "gather_points_backward"),
            *("gather_points_forward", "get_indice_pairs_2d_backward", "get_indice_pairs_2d_forward"),
            *("get_indice_pairs_3d_backward", "get_indice_pairs_3d_forward", "get_indice_pairs_4d_forward"),
            *("group_points_backward", "group_points_forward", "hard_voxelize_forward", "indice_conv_backward"),
            *("indice_conv_forward", "indice_maxpool_backward", "indice_maxpool_forward"),
            *("iou3d_boxes_overlap_bev_forward", "iou3d_nms3d_forward", "iou3d_nms3d_normal_forward", "knn_forward"),
            *("roiaware_pool3d_backward", "roiaware_pool3d_forward", "roipoint_pool3d_forward"),
            *("stack_ball_query_forward", "stack_group_points_backward", "stack_group_points_forward"),
            *("three_interpolate_backward", "three_interpolate_forward", "three_nn_forward"),
        ),
        POINT_CLOUDS,
    ),
    **dict.fromkeys(
        (
            *("active_rotated_filter_backward", "active_rotated_filter_forward"),
            *("convex_giou", "convex_iou", "diff_iou_rotated_sort_vertices_forward", "riroi_align_rotated_backward"),
            *("riroi_align_rotated_forward", "roi_align_rotated_backward", "roi_align_rotated_forward"),
            *("rotated_feature_align_backward", "rotated_feature_align_forward"),
        ),
        ROTATED,
    ),
    **dict.fromkeys(("bezier_align_backward", "bezier_align_forward", "contour_expand", "pixel_group"), TEXT),
    **dict.fromkeys(("bias_act", "filtered_lrelu", "filtered_lrelu_act_", "fused_bias_leakyrelu"), GENERATION),
    "upfirdn2d": GENERATION,
    **dict.fromkeys(("correlation_backward", "correlation_forward", "tin_shift_backward", "tin_shift_forward"), VIDEO),
}
